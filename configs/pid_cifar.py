"""PID on CIFAR-10 from an EDM teacher, without images: one network evaluation.

Command:   python -m ddistill.main --config=configs/pid_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one node of GPUs or TPUs; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2411.08378): its abstract states no number.
Released:  250 levels, RAdam 2e-4, batch 512, 800,000 updates, no dropout, EMA 0.9999 among others.
Ours:      the squared error in pixels in place of LPIPS. EDM's prediction of the network is kept,
           where the released student's image is the output of the network itself.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(recipes.pid_cifar(), variant, levels=0)
