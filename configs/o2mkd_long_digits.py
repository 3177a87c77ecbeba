"""O2MKD on scikit-learn's 8x8 digits, four times the updates of `o2mkd_digits`.

Command:   ./launch/local.sh --config=configs/o2mkd_long_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

In configs/o2mkd_digits.py, K students have 2,400 updates together. Here four students have 2,400
updates each (arXiv 2410.04191), and one student (plain distillation) has 9,600. Training takes four
times as long; the cost of sampling is the same for all.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    students = {
        **recipes.digits_specialists(8, (4, 1), warmup=800, updates=4 * 2400),
        **recipes.digits_specialists(4, (4, 1), warmup=800, updates=4 * 2400),
    }
    kept = ("classifier", "teacher", "o2mkd_warmup_w8", "o2mkd_w8_k4")
    return recipes.digits_config(recipes.digits("o2mkd_long_digits", students), variant, kept)
