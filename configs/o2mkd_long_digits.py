"""O2MKD on scikit-learn's 8x8 digits, as many updates for each of four students as for one.

Command:   ./launch/local.sh --config=configs/o2mkd_long_digits.py
Hardware:  two CPU cores.
Score:     not measured yet.

`o2mkd_digits` gives K students as many updates as one has, in all. Here each of the four has the
2,400 of the one (arXiv 2410.04191); the sampler's cost is the same, training takes four times as
long.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    students = {
        **recipes.digits_specialists(8, (4,), warmup=800, updates=4 * 2400),
        **recipes.digits_specialists(4, (4,), warmup=800, updates=4 * 2400),
    }
    settings = recipes.digits("o2mkd_long_digits", students)
    if variant == "smoke":
        kept = ("classifier", "teacher", "o2mkd_warmup_w8", "o2mkd_w8_k4")
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings, variant)
