"""O2MKD on scikit-learn's 8x8 digits, four times the updates of `o2mkd_digits`.

Command:   ./launch/local.sh --config=configs/o2mkd_long_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

`o2mkd_digits` gives K students 2,400 updates in all. Here four students have 2,400 each (arXiv
2410.04191), and one student, plain distillation, all of their 9,600. Training takes four times as
long; the sampler's cost is the same for all.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    students = {
        **recipes.digits_specialists(8, (4, 1), warmup=800, updates=4 * 2400),
        **recipes.digits_specialists(4, (4, 1), warmup=800, updates=4 * 2400),
    }
    settings = recipes.digits("o2mkd_long_digits", students)
    if variant == "smoke":
        kept = ("classifier", "teacher", "o2mkd_warmup_w8", "o2mkd_w8_k4")
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings, variant)
