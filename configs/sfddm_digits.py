"""SFDDM on scikit-learn's 8x8 digits: the main job, small enough for any laptop.

Command:   ./launch/local.sh --config=configs/sfddm_digits.py
Hardware:  two CPU cores, under 10 minutes after installation.
Score:     see docs/results.md.

One teacher (T = 256, sigmoid schedule) and students of 4, 2 and 1 steps. Each learns from the
teacher directly; the students of 2 steps and of 1 step start from the weights of the student
before them.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.digits("sfddm_digits", recipes.digits_students())
    return recipes.digits_config(settings, variant, ("classifier", "teacher", "sfddm_n4"))
