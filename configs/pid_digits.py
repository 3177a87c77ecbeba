"""PID on scikit-learn's 8x8 digits: a one-step student that is trained without images.

Command:   ./launch/local.sh --config=configs/pid_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

The student learns the teacher's path on 32 levels from noise alone (arXiv 2411.08378).
"""

from ddistill import recipes


def get_config(variant: str = ""):
    settings = recipes.digits("pid_digits", recipes.digits_from_noise("pid"))
    return recipes.digits_config(settings, variant)
