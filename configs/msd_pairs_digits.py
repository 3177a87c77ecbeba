"""MSD on scikit-learn's 8x8 digits, five students that regress on the pairs of all classes.

Command:   ./launch/local.sh --config=configs/msd_pairs_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

As in arXiv 2410.23274, where no student's pairs are filtered; in all else the five students of
`msd_digits`, whose pairs are of their own classes.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    students = recipes.digits_msd((5,), dm={"filter_pairs": False}, variant="pairs of all classes")
    settings = recipes.digits_conditional("msd_pairs_digits", students)
    if variant == "smoke":
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8})
    return recipes.to_config(settings, variant)
