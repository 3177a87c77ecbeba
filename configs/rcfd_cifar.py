"""RCFD on CIFAR-10, the authors' settings: features and classes of a ResNet-18 from 8 steps down.

Command:   python -m ddistill.main --config=configs/rcfd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one GPU or TPU core; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2211.12039): its tables were not found.
Released:  as configs/cfd_cifar.py, whose teacher and first halvings it shares; tau 0.95, weight
           0.003 of the terms on classes, 0.75 of it entropy and 0.25 diversity.
Ours:      the classifier is trained without AutoAugment and taken as it ends.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    small = {"start": 16, "switch": 8, "end": 4} if variant == "smoke" else {}
    settings = recipes.cfd_cifar("rcfd_cifar", "rcfd", "resnet", recipes.RCFD_RESNET18, **small)
    if variant == "smoke":
        settings = recipes.smoke_on_digits(settings, levels=0)
    return recipes.to_config(settings, variant)
