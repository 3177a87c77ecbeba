"""O2MKD x SFDDM on scikit-learn's 8x8 digits: students of 8 steps that each answer for two of them.

Command:   ./launch/local.sh --config=configs/o2mkd_sfddm_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Half the teacher's width, K = 1 and K = 4. All start from one student that has learnt the teacher's
outputs on all levels; then 1,600 updates of SFDDM's hidden-variable distance (arXiv 2405.14961), of
one student or of all four together, each on its own steps (arXiv 2410.04191).
"""

from ddistill import recipes
from ddistill.settings import GridSettings, OptimizerSettings

UPDATES = 1600
WARM = "o2mkd_warmup_w8"


def specialists(count: int):
    """K students of 8 SFDDM steps."""
    return recipes.o2mkd(
        count,
        steps=UPDATES // count,
        batch_size=64,
        optimizer=OptimizerSettings(
            learning_rate=2e-3, schedule="cosine", warmup=20, final_scale=0.02, clip=1.0
        ),
        samplers={},
        network=recipes.digits_network(8),
        prediction="v",
        start=WARM,
        name="_sfddm_w8",
        loss={"name": "sfddm", "substeps": 2},
        grid=GridSettings(steps=8),
        ema=(0.995,),
        variant="SFDDM",
    )


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    # The shared student of configs/o2mkd_digits.py, trained once for both.
    warm = recipes.digits_specialists(8, (1,), warmup=800, updates=2400)
    students = {WARM: warm[WARM], **specialists(1), **specialists(4)}
    settings = recipes.digits("o2mkd_sfddm_digits", students)
    if variant == "smoke":
        settings = recipes.smoke(settings, {"channels": 8, "head_dim": 8})
    return recipes.to_config(settings, variant)
