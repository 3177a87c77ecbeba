"""RCFD on CIFAR-10, the authors' settings: features and classes of a ResNet-18 from 8 steps down.

Command:   python -m ddistill.main --config=configs/rcfd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one GPU or TPU core; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2211.12039): its tables were not found.
Released:  teacher and first halvings are shared with configs/cfd_cifar.py; tau 0.95; the terms on
           classes have the weight 0.003, 0.75 of it entropy and 0.25 diversity.
Ours:      the classifier is trained without AutoAugment and taken after its last epoch.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    small = recipes.cfd_cifar("rcfd", (16, 8, 4))
    return recipes.image_config(recipes.cfd_cifar("rcfd"), variant, small=small, levels=0)
