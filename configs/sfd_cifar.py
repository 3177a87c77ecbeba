"""SFD on CIFAR-10 from an EDM teacher: two network evaluations after 1,562 train steps.

Command:   python -m ddistill.main --config=configs/sfd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one node of GPUs or TPUs; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2409.19681), FID at 2 evaluations: 4.53.
Released:  sigmas 80, 10.9, 0.67 and 0.006, the first step analytic; four teacher steps to a step of
           the student; Adam 5e-5, a tenth of it in the second half, batch 128, 200,000 paths.
Ours:      DPM-Solver++ of second order for the teacher, theirs is of third order; the last step
           ends at 0 and not at 0.006.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(recipes.sfd_cifar(), variant, levels=0)
