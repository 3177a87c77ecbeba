"""CFD on CIFAR-10, the authors' settings: features of a DenseNet-201 from 8 steps down.

Command:   python -m ddistill.main --config=configs/cfd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one GPU or TPU core; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2211.12039): its tables were not found; it claims a
           better FID than PD at few steps.
Released:  batch 128; teacher 800,000 updates at 2e-4, EMA 0.9999, dropout 0.1; halvings of 10,000
           updates (20,000 for 2 and 1 steps), Adam from 5e-5 to 0; tau 0.9, no terms on classes.
Ours:      the student of one halving teaches the next; we did not find which chain they used.
           The classifier is trained without AutoAugment and taken after its last epoch.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    small = recipes.cfd_cifar("cfd", (16, 8, 4))
    return recipes.image_config(recipes.cfd_cifar("cfd"), variant, small=small, levels=0)
