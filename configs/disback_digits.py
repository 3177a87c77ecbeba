"""DisBack and DMD2 on scikit-learn's 8x8 digits: one-step students of a class-conditional teacher.

Command:   ./launch/local.sh --config=configs/disback_digits.py
Hardware:  two CPU cores.
Score:     not measured.

A copy of the teacher learns the images of the untrained student; the student then has the
checkpoints of that training as teachers, the last one first, and the teacher itself at the end
(arXiv 2408.15991). The student of DMD2 has as many updates, all of them with the teacher.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.digits_conditional("disback_digits", recipes.digits_disback())
    return recipes.digits_config(settings, variant)
