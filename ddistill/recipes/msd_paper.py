"""MSD at the sizes of its papers: CIFAR-10 and 64x64 ImageNet, from EDM teachers.

We found no published hyperparameters of MSD (arXiv 2410.23274) and use the settings of the methods
that it combines: DMD's (arXiv 2311.18828) for DM, FastGen's and DMD2's (arXiv 2405.14867) for ADM,
EDM's (arXiv 2206.00364) for teachers and TSM. K students together see as many images as one student
would, because each has a K-th of the batch.
"""

import dataclasses
from collections.abc import Mapping

from ddistill.recipes.cifar import CIFAR, IMAGENET64
from ddistill.recipes.common import Options, edm_denoising, experiment, network, scorer_stage
from ddistill.recipes.msd import msd, pairs_stage, tsm_stage
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)

# EDM's levels. The time input is c_noise = ln(sigma) / 4, times 1000 as in EDM's ADM network.
KARRAS = ScheduleSettings(name="karras", steps=1000)
_UNET = {"time_conditioning": "scale_shift", "time_scale": 1000.0}
EDM_CIFAR = {"multipliers": (2, 2, 2), "blocks": 4, "attention": (16,), "num_classes": 10, **_UNET}
ADM = {
    "attention": (32, 16, 8),
    "head_dim": 64,
    "resample": "resblock",
    "num_classes": 1000,
    **_UNET,
}
ADM_64 = {"channels": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, **ADM}  # 295.9 M
# The sizes that match the paper's percentages: 172.8 M (-42 %) and 85.9 M (-71 %).
SMALLER = {
    "small": {"channels": 160, "multipliers": (1, 2, 2, 4), "blocks": 3, **ADM},
    "smaller": {"channels": 128, "multipliers": (1, 2, 2, 4), "blocks": 2, **ADM},
}


def edm_teacher(net: Options, updates: int, batch_size: int, rate: float) -> StageSettings:
    """A class-conditional teacher with EDM's preconditioning, weights and noise levels."""
    return StageSettings(
        objective=edm_denoising(int(net["num_classes"])),
        network=net,
        prediction="edm",
        conditional=True,
        steps=updates,
        batch_size=batch_size,
        optimizer=OptimizerSettings(learning_rate=rate, warmup=20_000, clip=1.0),
        ema=(0.9999,),
        shared=True,
    )


def msd_cifar(
    counts: tuple[int, ...] = (1, 2, 5),
    features: tuple[str, ...] = ("down_0", "down_1", "down_2"),
) -> Settings:
    """K students with the teacher's 57 M network: DM on 100,000 shared pairs, then ADM.

    Args:
      counts: the values of K.
      features: the teacher's features that the discriminator sees; by default those of the encoder
        at 32, 16 and 8 pixels.
    """
    optimizer = OptimizerSettings(
        name="adamw", learning_rate=5e-5, warmup=500, weight_decay=0.01, clip=10.0
    )
    stages = {
        "classifier": scorer_stage(),
        "teacher": edm_teacher(network("unet", dropout=0.13, **EDM_CIFAR), 390_000, 512, 1e-3),
        "pairs": pairs_stage(100_000, 500, 18, spacing="edm"),
    }
    for count in counts:
        stages |= msd(
            count,
            steps=300_000,
            batch_size=400 // count,
            optimizer=optimizer,
            second={
                "steps": 100_000,
                "optimizer": dataclasses.replace(optimizer, learning_rate=1e-4),
            },
            adm={
                "features_of": "teacher",
                "features": features,
                "gan_weight": 1e-3,
                "discriminator_weight": 1.0,
                "fake_weight": "uniform",
                "alternate": True,
            },
            ema=(0.9999,),
        )
    return _settings("msd_cifar", CIFAR, stages)


def msd_imagenet64(size: str = "", count: int = 4) -> Settings:
    """Students for 1000 / K classes each, after TSM if they are smaller than the teacher.

    Args:
      size: "" for the teacher's network, or a key of `SMALLER`.
      count: K.
    """
    optimizer = OptimizerSettings(
        name="adamw", learning_rate=2e-6, warmup=500, weight_decay=0.01, clip=10.0
    )
    stages = {
        "teacher": edm_teacher(network("unet", dropout=0.1, **ADM_64), 610_000, 4096, 1e-4),
        "pairs": pairs_stage(25_000, 100, 256, spacing="edm"),
    }
    changes: Options = {}
    if size:
        net = network("unet", **SMALLER[size])
        rate = OptimizerSettings(
            learning_rate=1e-3, schedule="cosine", warmup=2000, final_scale=0.2, clip=1.0
        )
        stages["tsm"] = tsm_stage(
            net, "edm", steps=100_000, batch_size=512, optimizer=rate, ema=(0.9999,)
        )
        changes = {"network": net, "prediction": "edm", "init": "tsm"}
    stages |= msd(
        count,
        steps=350_000,
        second={"steps": 400_000},
        batch_size=336 // count,
        optimizer=optimizer,
        ema=(),
        **changes,
    )
    name = f"msd_{size}_imagenet64" if size else "msd_imagenet64"
    return _settings(name, IMAGENET64, stages)


def _settings(name: str, data: Options, stages: Mapping[str, StageSettings]) -> Settings:
    scored = "classifier" in stages
    evaluation = EvaluationSettings(
        samples=10_000 if scored else 256,
        batch_size=250 if scored else 64,
        teacher_samplers={"heun": (18,)},
        teacher_spacing="edm",
        full_sampler="heun",
        full_steps=18 if scored else 256,
    )
    return experiment(name, data, KARRAS, stages, evaluation, checkpoint_every=5000)
