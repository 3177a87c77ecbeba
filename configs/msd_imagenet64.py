"""MSD on class-conditional 64x64 ImageNet: four one-step students of 250 classes each.

Command:   python -m ddistill.main --config=configs/msd_imagenet64.py
Data:      TFDS "imagenet_resized/64x64" prepared as array_record:
           python -m ddistill.data.prepare imagenet_resized/64x64
Hardware:  written for a pod of TPUs or several nodes of GPUs; not run by us.
Score:     ours: not reproduced. Paper (arXiv 2410.23274), FID with 1 evaluation, K = 4: DM
           2.37, ADM 1.20.
Settings:  K, classes, stages and sizes of the paper, the rest from DMD, DMD2 and EDM; but L2 in
           place of LPIPS, a K-th of DMD's batch for each student, and a teacher trained with 10 %
           of the labels dropped.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(recipes.msd_imagenet64(), variant, levels=0)
