"""Catch-Up Distillation on CIFAR-10, the authors' settings: from scratch, with two heads.

Command:   python -m ddistill.main --config=configs/cud_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for several GPUs or TPU cores; not run to its end by us, so no hours are stated.
           The authors state 1 to 2 days on four A100.
Score:     ours: not reproduced. Paper (arXiv 2305.10769): FID 2.80 at 15 network evaluations, and
           3.37 at one after a second training on its own samples.
Released:  EDM's DDPM++ (55.7 M parameters), dropout 0.13, batch 128, 500,000 updates, Adam 2e-4
           with a warm-up of 5,000, EMA 0.9999; steps uniform up to 1/16, both terms with weight 1.
Ours:      noise is independent of the image (`--independent` of the released code, whose default is
           a small encoder with a KL term), without ShakeDrop; 1024 rows of levels in place of
           continuous time. The second training is left out. Samples come from the first head, and
           "heun_flow" in 8 steps is the authors' 15 evaluations. The stage "teacher" is flow
           matching with the same settings, for comparison; the student does not start from it.
           --config.stages.catch_up.objective.runge_kutta=1 trains with one head.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    small = recipes.catch_up_cifar(recipes.network("unet"))
    return recipes.image_config(recipes.catch_up_cifar(), variant, small=small, levels=16)
