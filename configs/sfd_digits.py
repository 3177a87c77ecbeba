"""SFD on scikit-learn's 8x8 digits: students of 4, 2 and 1 steps, trained without images.

Command:   ./launch/local.sh --config=configs/sfd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Every train step follows one path of the teacher and updates the student once for each of its steps
(arXiv 2409.19681).
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.digits_config(recipes.digits("sfd_digits", recipes.digits_sfd()), variant)
