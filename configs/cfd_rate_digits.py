"""PD and CFD on scikit-learn's 8x8 digits at a lower learning rate: 5e-4 instead of 2e-3.

Command:   ./launch/local.sh --config=configs/cfd_rate_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Halvings from 8 steps to 1 step as in configs/pd_digits.py and configs/cfd_digits.py, from the same
8-step student and with the same number of updates, at a quarter of the rate.
"""

import dataclasses

from ddistill import recipes

RATE = 5e-4


def slowly(method: str, **changes):
    """Halvings from 8 steps to 1 step at the lower rate."""
    stages = recipes.digits_halvings(8, 1, method=method, teacher="pd_n8", **changes)
    return {
        name: dataclasses.replace(
            stage,
            optimizer=dataclasses.replace(stage.optimizer, learning_rate=RATE),
            variant=f"rate {RATE:g}",
        )
        for name, stage in stages.items()
    }


def get_config(variant: str = ""):
    students = {
        "feature_classifier": recipes.digits_feature_classifier(),
        **recipes.digits_halvings(32, 8),
        **slowly("pd"),
        **slowly("cfd", classifier="feature_classifier", loss=recipes.CFD_DENSENET201),
    }
    kept = ("classifier", "teacher", "feature_classifier", "pd_n16", "pd_n8", "cfd_n4")
    return recipes.digits_config(recipes.digits("cfd_rate_digits", students), variant, kept)
