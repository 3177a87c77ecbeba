"""MeanFlow on scikit-learn's 8x8 digits: one student for 1, 2, 4 and 8 steps, and for any number.

Command:   ./launch/local.sh --config=configs/meanflow_digits.py
Hardware:  two CPU cores.
Score:     docs/results/meanflow_digits.md, seeds 3, 4 and 5.

The teacher is trained by flow matching (arXiv 2210.02747). One student takes the velocity of the
path from it (the Eulerian objective of AYF, arXiv 2506.14603), the other one from the data (arXiv
2505.13447); both start with its weights. CD (arXiv 2303.01469) from the same teacher is for
comparison. The network's time goes up to 5 radians: students that are differentiated in time are
unstable with fast sinusoids.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    students = {
        **recipes.digits_two_time("meanflow_distilled"),
        **recipes.digits_two_time("meanflow"),
        **recipes.digits_consistency("cd"),
    }
    settings = recipes.digits_flow("meanflow_digits", students, recipes.SMOOTH_TIME)
    return recipes.digits_config(settings, variant)
