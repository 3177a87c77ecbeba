"""The DM stage of MSD on scikit-learn's 8x8 digits with ten seeds: whether any of them diverges.

Command:   ./launch/local.sh --config=configs/msd_seeds_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

One stage trains ten students of all classes from one teacher; only their seeds differ. All other
settings are those of configs/msd_digits.py (DMD, arXiv 2311.18828).
"""

from ddistill import recipes

SEEDS = tuple(range(10))


def get_config(variant: str = ""):
    seeds = SEEDS[:2] if variant == "smoke" else SEEDS
    sweep = {"partition": "none", "sweep": {"seed": seeds}}
    students = recipes.digits_msd((len(seeds),), second=None, students=sweep)
    settings = recipes.digits_conditional("msd_seeds_digits", students)
    return recipes.digits_config(settings, variant)
