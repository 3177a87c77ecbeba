"""CFD on scikit-learn's 8x8 digits: from the 8-step PD student to 4, 2 and 1 steps.

Command:   ./launch/local.sh --config=configs/cfd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Halvings down to 8 steps compare pixels, as in configs/pd_digits.py, and are trained once for both;
from there on the images are compared in the features of a classifier, which is not the one
that scores them (arXiv 2211.12039).
"""

from ddistill import recipes


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    settings = recipes.digits("cfd_digits", recipes.digits_chain("cfd", recipes.CFD_DENSENET201))
    if variant == "smoke":
        kept = ("classifier", "teacher", "feature_classifier", "pd_n16", "pd_n8", "cfd_n4")
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings, variant)
