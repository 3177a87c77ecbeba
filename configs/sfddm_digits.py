"""SFDDM on scikit-learn's 8x8 digits: the main job, small enough for any laptop.

Command:   ./launch/local.sh --config=configs/sfddm_digits.py
Hardware:  any CPU with two cores.
"""

from ddistill import recipes

SUBSTEPS = {4: 2, 2: 4, 1: 8}


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    students = {
        f"sfddm_n{levels}": recipes.digits_student(levels, substeps=substeps)
        for levels, substeps in SUBSTEPS.items()
    }
    settings = recipes.digits("sfddm_digits", students)
    if variant == "smoke":
        kept = ("classifier", "teacher", "sfddm_n2")
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings)
