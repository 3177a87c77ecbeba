"""O2MKD on CIFAR-10: four students of half the teacher's width, a quarter of its parameters each.

Command:   python -m ddistill.main --config=configs/o2mkd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one GPU or TPU core; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper: tables not found (arXiv 2410.04191).
Settings:  DDPM's 35.75 M teacher, T = 1000; four students of 8.95 M, together as large as the
           teacher. Widths, K and lengths are our choice.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    paper = recipes.O2MKDPaper(
        data=recipes.CIFAR,
        network=recipes.DDPM_32,
        teacher=recipes.Budget(800_000, 128),
        rate=2e-4,
        students=recipes.Budget(400_000, 128),
    )
    return recipes.image_config(recipes.o2mkd_paper("o2mkd_cifar", paper, scored=True), variant)
