"""Consistency training on scikit-learn's 8x8 digits: one student for 1, 2 and 4 steps.

Command:   ./launch/local.sh --config=configs/ct_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

CT (arXiv 2303.01469), iCT (arXiv 2310.14189) and ECT (arXiv 2406.14548) learn from the data alone;
each starts from the weights of the teacher, to which the report compares it.
"""

from ddistill import recipes

METHODS = ("ct", "ict", "ect")


def get_config(variant: str = ""):
    students = {}
    for method in METHODS:
        students |= recipes.digits_consistency(method)
    return recipes.digits_config(recipes.digits("ct_digits", students), variant)
