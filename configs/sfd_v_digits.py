"""SFD-v on scikit-learn's 8x8 digits: one student for 4, 3, 2 and 1 steps, without images.

Command:   ./launch/local.sh --config=configs/sfd_v_digits.py
Hardware:  two CPU cores.
Score:     not measured.

Train steps take the numbers of steps one after another, and the student is given the number
(arXiv 2409.19681). The students of configs/sfd_digits.py have one number of steps each.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.digits_config(recipes.digits("sfd_v_digits", recipes.digits_sfd_v()), variant)
