"""SFDDM on LSUN church at 128 x 128, released settings: T' = 100 of T = 1024 steps.

Command:   python -m ddistill.main --config=configs/sfddm_church.py --config.data.path=FOLDER
Data:      a folder of the 126 227 church images in any format; they are resized and cropped to 128.
           Put them into FOLDER/train and some into FOLDER/test; else a tenth is held back.
Hardware:  written for one GPU or TPU core; not run by us, so no hours are stated.
Score:     ours: not reproduced. Paper: no FID table was found (arXiv 2405.14961).
Released:  v-prediction, batch 40, 50 epochs (157 784 updates), Adam 2e-4, L1 on output and last
           features, phi(i) = int(10.24 i). The teacher's length is our choice: the same.
Ours:      a U-Net of 63.3 M (released: 35.7 M, with linear attention at the outer levels).
"""

from ddistill import recipes


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    settings = recipes.sfddm_paper(
        "sfddm_church",
        {"name": "folder", "path": "data/lsun_church", "image_size": 128, "flip": False},
        innermost=16,
        prediction="v",
        levels=100,
        teacher_updates=157_784,
        teacher_batch=40,
        updates=157_784,
        batch_size=40,
    )
    if variant == "smoke":
        settings = recipes.smoke_on_digits(settings)
    return recipes.to_config(settings, variant)
