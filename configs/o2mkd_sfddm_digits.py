"""O2MKD x SFDDM on scikit-learn's 8x8 digits: students of 8 steps, each for two of them.

Command:   ./launch/local.sh --config=configs/o2mkd_sfddm_digits.py
Hardware:  two CPU cores.
Score:     see docs/results.md.

Half the teacher's width, K = 1 and K = 4. All students start from one that was trained on the
teacher's outputs at all levels. Then one student, or four students together, have 1,600 updates of
SFDDM's hidden-variable distance (arXiv 2405.14961), each on its own steps (arXiv 2410.04191).
"""

from ddistill import recipes
from ddistill.settings import GridSettings

UPDATES = 1600
WARM = "o2mkd_warmup_w8"


def specialists(count: int):
    """K students of 8 SFDDM steps."""
    return recipes.o2mkd(
        count,
        start=WARM,
        name="_sfddm_w8",
        loss={"name": "sfddm", "substeps": 2},
        steps=UPDATES // count,
        batch_size=64,
        optimizer=recipes.annealed(2e-3, warmup=20),
        network=recipes.digits_network(8),
        prediction="v",
        grid=GridSettings(steps=8),
        ema=(0.995,),
        variant="SFDDM",
    )


def get_config(variant: str = ""):
    # The shared student of configs/o2mkd_digits.py, trained once for both.
    warm = recipes.digits_specialists(8, (1,), warmup=800, updates=2400)
    students = {WARM: warm[WARM], **specialists(1), **specialists(4)}
    return recipes.digits_config(recipes.digits("o2mkd_sfddm_digits", students), variant)
