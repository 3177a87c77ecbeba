"""SFDDM on CelebA faces at 64 x 64, released settings: T' = 16 of T = 1024 steps.

Command:   python -m ddistill.main --config=configs/sfddm_celebahq.py --config.data.path=FOLDER
Data:      a folder of CelebA or CelebA-HQ images in any format; they are resized and cropped to 64.
           (The paper names CelebA-HQ; the released run is CelebA at 64 pixels.)
           Put the images into FOLDER/train and test images into FOLDER/test; without FOLDER/test, a
           tenth is held out.
Hardware:  written for one GPU or TPU core; not run by us, so no hours are stated.
Score:     ours: not reproduced. Paper: no FID table was found (arXiv 2405.14961).
Released:  eps-prediction, batch 25, 30 epochs of 162 770 images (195 324 updates), Adam 2e-4, L1 on
           output and last features; the teacher is trained for 30 epochs at batch 48.
Ours:      a U-Net of 63.3 M (released: 35.7 M, with linear attention at the outer levels).
"""

from ddistill import recipes


def get_config(variant: str = ""):
    paper = recipes.SFDDMPaper(
        data={"name": "folder", "path": "data/celeba", "image_size": 64, "flip": False},
        side=64,
        prediction="eps",
        levels=16,
        teacher=recipes.Budget(101_731, 48),
        student=recipes.Budget(195_324, 25),
    )
    return recipes.image_config(recipes.sfddm_paper("sfddm_celebahq", paper), variant)
