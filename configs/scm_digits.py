"""sCM on scikit-learn's 8x8 digits: consistency models in continuous time, and rCM.

Command:   ./launch/local.sh --config=configs/scm_digits.py
Hardware:  two CPU cores.
Score:     not measured.

The flow-matching teacher of configs/meanflow_digits.py, read in TrigFlow's coordinates (arXiv
2410.11081). sCD follows the teacher's path, sCT that of the data, rCM (arXiv 2510.08431) adds
distribution matching on the student's own rollouts; all start with the teacher's weights.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    students = {
        **recipes.digits_scm("scd"),
        **recipes.digits_scm("sct"),
        **recipes.digits_scm("rcm"),
    }
    settings = recipes.digits_flow("scm_digits", students, recipes.SMOOTH_TIME)
    return recipes.digits_config(settings, variant)
