"""SFDDM's FD against its number of steps, T' = 1, 2, 4, 8, 16, from one run of one program.

Command:   ./launch/local.sh --config=configs/sfddm_sweep_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Five students learn side by side from the same teacher, on the same batches, 700 updates each; they
differ in their grid and in nothing else, so that one compiled step serves all of them.
"""

import dataclasses

from ddistill import recipes
from ddistill.settings import StudentsSettings

STEPS = (1, 2, 4, 8, 16)


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    stage = dataclasses.replace(
        recipes.digits_student(4, substeps=4, shared=False),
        students=StudentsSettings(count=len(STEPS), sweep={"grid_steps": STEPS}),
    )
    settings = recipes.digits("sfddm_sweep_digits", {"sfddm": stage})
    if variant == "smoke":
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8})
    return recipes.to_config(settings, variant)
