"""The DM stage of MSD on scikit-learn's 8x8 digits with ten seeds: does any of them diverge?

Command:   ./launch/local.sh --config=configs/msd_seeds_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Ten students of all classes from one teacher, which differ in their seed alone, as one stage; the
settings are those of `msd_digits` (DMD, arXiv 2311.18828).
"""

from ddistill import recipes

SEEDS = tuple(range(10))


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    seeds = SEEDS[:2] if variant == "smoke" else SEEDS
    students = recipes.digits_msd(
        (len(seeds),), adm_steps=0, students={"partition": "none", "sweep": {"seed": seeds}}
    )
    settings = recipes.digits_conditional("msd_seeds_digits", students)
    if variant == "smoke":
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8})
    return recipes.to_config(settings, variant)
