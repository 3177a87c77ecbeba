"""Shortcut models on scikit-learn's 8x8 digits: one student for 1, 2, 4 and 8 steps.

Command:   ./launch/local.sh --config=configs/shortcut_digits.py
Hardware:  two CPU cores.
Score:     docs/results/shortcut_digits.md, seeds 3, 4 and 5.

The flow-matching teacher of configs/meanflow_digits.py. One student (arXiv 2410.12557) takes the
velocity at the shortest step from it, the other one from the data; both start with its weights.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    students = {
        **recipes.digits_two_time("shortcut_distilled"),
        **recipes.digits_two_time("shortcut"),
    }
    settings = recipes.digits_flow("shortcut_digits", students, recipes.SMOOTH_TIME)
    return recipes.digits_config(settings, variant)
