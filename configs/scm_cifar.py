"""sCD on CIFAR-10: a consistency model in continuous time from an EDM teacher.

Command:   python -m ddistill.main --config=configs/scm_cifar.py
Data:      TFDS "cifar10" prepared as array_record: python -m ddistill.data.prepare cifar10
Hardware:  written for several GPUs or TPU cores; not run to its end by us, so no hours are stated.
Score:     ours: not reproduced. Paper (arXiv 2410.11081): FID 3.66 at one network evaluation (sCD),
           2.85 (sCT); FastGen's runs 3.23 and 3.22.
Released:  FastGen: sigma lognormal (-1, 1.4), RAdam 1e-4 with beta2 0.99, no clipping, batch 512,
           350,000 to 500,000 updates, dropout 0, tangent warm-up of 10,000, weight 1 / sigma times
           a learnt one.
Ours:      our U-Net of EDM's size, 1000 rows of EDM's levels in place of continuous time, 400,000
           updates. Its time is c_noise itself, without the large factor of configs/cd_cifar.py, so
           the teacher is another one.
           sCT: --config.stages.scd.objective.velocity_from=data
           --config.stages.scd.objective.log_std=1.8 --config.stages.scd.network.dropout=0.2;
           FastGen's has levels up to sigma = 800, these end at 80.
"""

from ddistill import recipes


def get_config(variant: str = ""):
    return recipes.image_config(recipes.scm_cifar(), variant, levels=16)
