"""MSD on scikit-learn's 8x8 digits with students of a quarter of the teacher's parameters.

Command:   ./launch/local.sh --config=configs/msd_small_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

K = 1, 2, 5 students of half the teacher's width start from a student that was trained on the
teacher's predictions (TSM, arXiv 2410.23274). The students in the rows "fresh", K = 1, 2, start
from random weights.
"""

from ddistill import recipes

COUNTS = (1, 2, 5)
FRESH = (1, 2)


def get_config(variant: str = ""):
    settings = recipes.digits_conditional(
        "msd_small_digits", recipes.digits_small_msd(8, COUNTS, FRESH)
    )
    return recipes.digits_config(
        settings, variant, ("classifier", "teacher", "pairs", "tsm_w8", "dm_w8_k2", "adm_w8_k2")
    )
