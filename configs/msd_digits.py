"""MSD on scikit-learn's 8x8 digits: K = 1, 2, 5 one-step students that share out the ten classes.

Command:   ./launch/local.sh --config=configs/msd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Students have the teacher's network and are trained by distribution matching with regression on the
pairs of their own classes, then with a discriminator on the teacher's features (arXiv 2410.23274).
The paper's students see the pairs of all classes, which does not do here. Every student has as many
updates whatever K is.
"""

from ddistill import recipes

COUNTS = (1, 2, 5)


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    settings = recipes.digits_conditional("msd_digits", recipes.digits_msd(COUNTS))
    if variant == "smoke":
        kept = ("classifier", "teacher", "pairs", "dm_k2", "adm_k2")
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings, variant)
