"""MSD on CIFAR-10: K = 1, 2, 5 one-step students of an EDM teacher, DM and then ADM.

Command:   python -m ddistill.main --config=configs/msd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one node of GPUs or TPUs; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper: none on CIFAR-10 (arXiv 2410.23274); its parts with one
           student: DMD 2.66, DMD2 in FastGen's recipe 1.99 (FID, 1 evaluation).
Settings:  our choices are K, a K-th of a batch of 400 for each student, and L2 in place of LPIPS.
           Pairs and the teacher's row use Heun's method on EDM's own 18 sigmas (35 evaluations).
"""

from ddistill import recipes


def get_config(variant: str = ""):
    small = recipes.msd_cifar((2,), ("mid",))
    return recipes.image_config(recipes.msd_cifar(), variant, small=small, levels=0)
