"""SFDDM on CIFAR-10, released settings: T' = 128 of T = 1024 steps.

Command:   python -m ddistill.main --config=configs/sfddm_cifar.py
Data:      TFDS "cifar10" prepared as array_record (python -m ddistill.data.prepare cifar10), or
           a folder of 32x32 images in ten class folders:
           --config.data.name=folder --config.data.path=FOLDER
Hardware:  written for one GPU or TPU core; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper: no FID table was found (arXiv 2405.14961 claims good quality
           at about 1 % of the steps).
Released:  batch 50, 10 000 updates, Adam 2e-4, eps-prediction, L1 on output and last features,
           fresh weights, the step index as the time input, no flips; the teacher is trained for 50
           epochs at batch 50.
Ours:      a U-Net of 63.3 M (released: 35.7 M, with linear attention at the outer levels).
"""

from ddistill import recipes


def get_config(variant: str = ""):
    paper = recipes.SFDDMPaper(
        data={"name": "tfds", "path": "cifar10", "flip": False},
        side=32,
        prediction="eps",
        levels=128,
        teacher=recipes.Budget(50_000, 50),
        student=recipes.Budget(10_000, 50),
    )
    return recipes.image_config(recipes.sfddm_paper("sfddm_cifar", paper, scored=True), variant)
