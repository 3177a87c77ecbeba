"""SFDDM's FD against its number of steps, T' = 1, 2, 4, 8, 16, from one run of one program.

Command:   ./launch/local.sh --config=configs/sfddm_sweep_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

One stage trains five students of the same teacher on the same batches, 700 updates each. They
differ only in their grids, so that one compiled step updates all of them.
"""

from ddistill import recipes
from ddistill.settings import StudentsSettings

STEPS = (1, 2, 4, 8, 16)


def get_config(variant: str = ""):
    sweep = StudentsSettings(count=len(STEPS), sweep={"grid_steps": STEPS})
    stage = recipes.digits_student(4, substeps=4, shared=False, students=sweep)
    settings = recipes.digits("sfddm_sweep_digits", {"sfddm": stage})
    return recipes.digits_config(settings, variant)
