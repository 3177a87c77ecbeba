"""SFDDM on LSUN church at 128 x 128, released settings: T' = 100 of T = 1024 steps.

Command:   python -m ddistill.main --config=configs/sfddm_church.py --config.data.path=FOLDER
Data:      a folder of the 126 227 church images in any format; they are resized and cropped to 128.
           Put the images into FOLDER/train and test images into FOLDER/test; without FOLDER/test, a
           tenth is held out.
Hardware:  written for one GPU or TPU core; not run by us, so no hours are stated.
Score:     ours: not reproduced. Paper: no FID table was found (arXiv 2405.14961).
Released:  v-prediction, batch 40, 50 epochs (157 784 updates), Adam 2e-4, L1 on output and last
           features, phi(i) = int(10.24 i). The teacher's length is our choice: the same.
Ours:      a U-Net of 63.3 M (released: 35.7 M, with linear attention at the outer levels).
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(recipes.sfddm_lsun("church", images=126_227), variant)
