"""MSD on scikit-learn's 8x8 digits, five students that regress on the pairs of all classes.

Command:   ./launch/local.sh --config=configs/msd_pairs_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

As in arXiv 2410.23274, where every student sees all pairs. All other settings are those of the five
students in configs/msd_digits.py, where each sees the pairs of its own classes.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.digits_conditional(
        "msd_pairs_digits",
        recipes.digits_msd((5,), dm={"filter_pairs": False}, variant="pairs of all classes"),
    )
    return recipes.digits_config(settings, variant)
