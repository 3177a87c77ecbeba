"""MSD on class-conditional 64x64 ImageNet: four students of 172.8 M, 42 % smaller.

Command:   python -m ddistill.main --config=configs/msd_small_imagenet64.py
Data:      TFDS "imagenet_resized/64x64" prepared as array_record:
           python -m ddistill.data.prepare imagenet_resized/64x64
Hardware:  written for a pod of TPUs or several nodes of GPUs; not run by us.
Score:     ours: not reproduced. Paper (arXiv 2410.23274), FID with 1 evaluation, K = 4: 2.88
           after TSM, DM and ADM; 11.67 distilled from a one-step model instead.
Settings:  the paper's K, classes and stages, and else those of DMD, DMD2 and EDM; but L2 in place
           of LPIPS, a K-th of DMD's batch for each student, and a teacher that drops 10 % of the
           labels. Sizes are inferred from the paper's percentages; TSM's length, batch and rate
           are ours.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    settings = recipes.msd_imagenet64("small")
    if variant == "smoke":
        settings = recipes.smoke_on_digits(settings, levels=0)
    return recipes.to_config(settings, variant)
