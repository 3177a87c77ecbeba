"""MSD on scikit-learn's 8x8 digits: K = 1, 2, 5 one-step students, each for a part of the classes.

Command:   ./launch/local.sh --config=configs/msd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Students have the teacher's network and are trained by distribution matching with regression on the
pairs of their own classes, then with a discriminator on the teacher's features (arXiv 2410.23274).
The paper's students see the pairs of all classes, which gives worse samples here (see
configs/msd_pairs_digits.py). The number of updates of a student does not depend on K.
"""

from ddistill import recipes

COUNTS = (1, 2, 5)


def get_config(variant: str = ""):
    settings = recipes.digits_conditional("msd_digits", recipes.digits_msd(COUNTS))
    return recipes.digits_config(
        settings, variant, ("classifier", "teacher", "pairs", "dm_k2", "adm_k2")
    )
