"""O2MKD on CelebA-HQ at 256 x 256: four students of half the teacher's width.

Command:   python -m ddistill.main --config=configs/o2mkd_celebahq.py --config.data.path=FOLDER
Data:      a folder of the 30 000 CelebA-HQ images in any format; they are resized and cropped to
           256.
Hardware:  written for a TPU slice or several GPUs; not run by us, so no hours are stated.
Score:     ours: not reproduced. Paper: tables not found (arXiv 2410.04191).
Settings:  DDPM's network of 113.7 M, T = 1000, rate 2e-5. Widths, K and lengths are our choice.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(recipes.o2mkd_256("o2mkd_celebahq", "celebahq", 500_000), variant)
