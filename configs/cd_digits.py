"""Consistency distillation on scikit-learn's 8x8 digits: one student for 1, 2 and 4 steps.

Command:   ./launch/local.sh --config=configs/cd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

CD by Heun steps of the teacher on 32 levels (arXiv 2303.01469), and LCM's variant (arXiv
2310.04378): DDIM steps over four of 64 levels, Huber distances, a moving average as the target.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    students = {
        **recipes.digits_consistency("cd"),
        **recipes.digits_consistency("lcm"),
    }
    return recipes.digits_config(recipes.digits("cd_digits", students), variant)
