"""What the learning rate does to PD and CFD on scikit-learn's 8x8 digits: 5e-4 instead of 2e-3.

Command:   ./launch/local.sh --config=configs/cfd_rate_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Halvings from 8 to 1 steps as in configs/pd_digits.py and configs/cfd_digits.py, from the same
8-step student and with as many updates, at a quarter of the rate.
"""

import dataclasses

from ddistill import recipes

RATE = 5e-4


def slowly(method: str, **changes):
    """Halvings from 8 to 1 at the lower rate."""
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
    recipes.check_variant(variant)
    students = {
        "feature_classifier": recipes.digits_feature_classifier(),
        **recipes.digits_halvings(32, 8),
        **slowly("pd"),
        **slowly("cfd", classifier="feature_classifier", loss=recipes.CFD_DENSENET201),
    }
    settings = recipes.digits("cfd_rate_digits", students)
    if variant == "smoke":
        kept = ("classifier", "teacher", "feature_classifier", "pd_n16", "pd_n8", "cfd_n4")
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8}, keep=kept)
    return recipes.to_config(settings, variant)
