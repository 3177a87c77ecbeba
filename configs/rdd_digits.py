"""RDD on scikit-learn's 8x8 digits: from the 8-step PD student to 4, 2 and 1 steps.

Command:   ./launch/local.sh --config=configs/rdd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Halvings down to 8 steps compare pixels, as in configs/pd_digits.py, and are trained once for both.
Later halvings compare images in the features of a classifier, and how the pixels of its final maps
relate to each other and to a queue (arXiv 2410.07679). Another classifier scores the samples.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.digits("rdd_digits", recipes.digits_chain("rdd"))
    return recipes.digits_config(
        settings,
        variant,
        ("classifier", "teacher", "feature_classifier", "pd_n16", "pd_n8", "rdd_n4"),
    )
