"""Easy consistency tuning on CIFAR-10 from an EDM teacher's weights, without its predictions.

Command:   python -m ddistill.main --config=configs/ect_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one node of GPUs or TPUs; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2406.14548, README of its code), FID at 1 / 2
           evaluations after 200,000 updates: 3.86 / 2.15.
Released:  RAdam 1e-4, batch 128, dropout 0.2, no augmentation, EMA 0.9999; q = 2 in eight stages of
           25,000 updates; lognormal levels, norms of errors divided by the step.
Ours:      levels are rows of a table of 4,000 and not continuous; the constant of the pseudo-Huber
           distance is 1e-8 and not 0.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(recipes.ect_cifar(), variant, levels=0)
