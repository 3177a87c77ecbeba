"""Consistency distillation on CIFAR-10 from an EDM teacher, by Heun steps on 17 intervals.

Command:   python -m ddistill.main --config=configs/cd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one node of GPUs or TPUs; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2303.01469, with LPIPS as the distance), FID at 1 / 2
           evaluations: 3.55 / 2.93.
Released:  RAdam 4e-4 after a warm-up of 10 million images, batch 512, 800,000 updates, EMA 0.9999,
           no dropout, uniform levels and weights, the student itself as a constant as the target.
Ours:      the squared error in pixels in place of LPIPS; flips; the teacher's levels are those of a
           table of 1,000, of which the student has 17.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(recipes.cd_cifar(), variant, levels=0)
