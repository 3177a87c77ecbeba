"""O2MKD on scikit-learn's 8x8 digits: K = 1, 2, 4, 8 students of half and a quarter of the width.

Command:   ./launch/local.sh --config=configs/o2mkd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Every row costs 800 updates of a shared student and 2,400 more, of one student or of all K together
(arXiv 2410.04191); a step of the sampler asks one student of that width.
"""

from ddistill import recipes

COUNTS = (1, 2, 4, 8)


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    students = {
        **recipes.digits_specialists(8, COUNTS, warmup=800, updates=2400),
        **recipes.digits_specialists(4, COUNTS, warmup=800, updates=2400),
    }
    settings = recipes.digits("o2mkd_digits", students)
    if variant == "smoke":
        kept = ("classifier", "teacher", "o2mkd_warmup_w8", "o2mkd_w8_k1", "o2mkd_w8_k4")
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings, variant)
