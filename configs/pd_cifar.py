"""PD on CIFAR-10, the authors' settings: 8192 steps halved down to 1.

Command:   python -m ddistill.main --config=configs/pd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for several GPUs or TPU cores; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2202.00512), FID at 8 / 4 / 2 / 1 steps: 2.57 / 3.00 /
           4.51 / 9.12.
Released:  batch 128; teacher Adam 2e-4, EMA 0.9999, dropout 0.2; halvings of 50,000 updates (the
           last two 100,000), Adam from 5e-5 to 0, x-prediction, truncated SNR, no EMA.
Ours:      the teacher is trained on the 8192 levels of the schedule, not on continuous time, and
           for 800,000 updates, a number that the paper does not state.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(
        recipes.pd_cifar(), variant, small=recipes.pd_cifar(16, 4), levels=0
    )
