"""MeanFlow on CIFAR-10 from scratch, with the settings of the authors' second code.

Command:   python -m ddistill.main --config=configs/meanflow_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for several GPUs or TPU cores; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2505.13447): FID 2.92 at one network evaluation; the
           authors' second code 2.80 to 2.90, FastGen's 2.82.
Released:  EDM's DDPM++ (55.7 M parameters), dropout 0.2, EDM's augmentation without rotations,
           batch 1024, 800,000 updates, Adam 6e-4 after 200 epochs of warm-up, EMA 0.9999; times
           logit-normal (-0.6, 1.6), ends logit-normal (-4, 1.6) below them, 75 % with r = t, p
           0.75.
Ours:      our U-Net of EDM's size, mirrored images alone, 1024 rows of levels in place of
           continuous time. The stage "teacher" is flow matching with the same network, for
           comparison; the student does not start from it and does not call it.
           --config.stages.meanflow.objective.velocity_from=teacher distils it.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    small = recipes.meanflow_cifar(recipes.network("unet", time_scale=1e-3))
    return recipes.image_config(recipes.meanflow_cifar(), variant, small=small, levels=16)
