"""O2MKD on CIFAR-10: four students of half the teacher's width, a quarter of its parameters each.

Command:   python -m ddistill.main --config=configs/o2mkd_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for one GPU or TPU core; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper: tables not found (arXiv 2410.04191).
Settings:  DDPM's 35.75 M teacher, T = 1000; four students of 8.95 M, together as large as it is.
           Widths, K and lengths are our choice.
"""

from ddistill import recipes
from ddistill.recipes.cifar import CIFAR, scorer_stage


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    settings = recipes.o2mkd_paper(
        "o2mkd_cifar",
        CIFAR,
        recipes.DDPM_32,
        width=64,
        teacher_updates=800_000,
        teacher_batch=128,
        teacher_rate=2e-4,
        budget=400_000,
        batch_size=128,
        classifier=scorer_stage(),
    )
    if variant == "smoke":
        settings = recipes.smoke_on_digits(settings)
    return recipes.to_config(settings, variant)
