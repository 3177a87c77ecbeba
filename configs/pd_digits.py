"""Progressive distillation on scikit-learn's 8x8 digits: 32 teacher steps halved down to 1.

Command:   ./launch/local.sh --config=configs/pd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

The teacher is the same as in configs/sfddm_digits.py and is trained once for both.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.digits("pd_digits", recipes.digits_halvings(32, 1))
    return recipes.digits_config(settings, variant, ("classifier", "teacher", "pd_n16", "pd_n8"))
