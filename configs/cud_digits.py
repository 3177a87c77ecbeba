"""Catch-Up Distillation on scikit-learn's 8x8 digits, from a flow-matching teacher's weights.

Command:   ./launch/local.sh --config=configs/cud_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

The teacher is trained by flow matching (arXiv 2210.02747) on 256 levels of the straight path. Both
students (arXiv 2305.10769) begin with its weights and do not call it: one follows Euler's method,
the other Heun's with a second head. They are sampled by Euler's method (DDIM) and by Heun's.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.digits_flow("cud_digits", recipes.digits_catch_up())
    return recipes.digits_config(settings, variant)
