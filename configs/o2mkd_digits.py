"""O2MKD on scikit-learn's 8x8 digits: K = 1, 2, 4, 8 students of half and a quarter of the width.

Command:   ./launch/local.sh --config=configs/o2mkd_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Every row costs 800 updates of a shared student and 2,400 further updates, of one student or of all
K together (arXiv 2410.04191). A step of the sampler calls one student.
"""

from ddistill import recipes

COUNTS = (1, 2, 4, 8)


def get_config(variant: str = ""):
    students = {
        **recipes.digits_specialists(8, COUNTS, warmup=800, updates=2400),
        **recipes.digits_specialists(4, COUNTS, warmup=800, updates=2400),
    }
    kept = ("classifier", "teacher", "o2mkd_warmup_w8", "o2mkd_w8_k1", "o2mkd_w8_k4")
    return recipes.digits_config(recipes.digits("o2mkd_digits", students), variant, kept)
