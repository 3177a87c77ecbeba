"""DDIL on scikit-learn's 8x8 digits: PD from 16 to 1 steps, and CD, at states of the student too.

Command:   ./launch/local.sh --config=configs/ddil_digits.py
Hardware:  two CPU cores.
Score:     not measured.

After a fifth of the training, half of the noisy images are states of the student's own rollouts,
half of these from a buffer of earlier ones (arXiv 2410.11971). The losses are those of
configs/pd_digits.py and configs/cd_digits.py, with clipped x0 in their targets.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.digits("ddil_digits", recipes.digits_ddil())
    return recipes.digits_config(
        settings, variant, ("classifier", "teacher", "pd_n16", "ddil_n8", "ddil_cd")
    )
