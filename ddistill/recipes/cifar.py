"""PD, CFD and RCFD on 32x32 and 64x64 images, with the settings that their authors released."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddistill.recipes.common import experiment, network, objective, scorer_stage, teacher_stage
from ddistill.recipes.progressive import (
    feature_halvings,
    progressive,
    released_optimizer,
)
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)

CIFAR = {"name": "tfds", "path": "cifar10", "flip": True}
IMAGENET64 = {"name": "tfds", "path": "imagenet_resized/64x64", "flip": True}
# CFD's U-Net is DDPM's; PD's has BigGAN's residual blocks, wider and on three levels.
CFD_NETWORK = {"channels": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,)}
PD_NETWORK = {
    "channels": 256,
    "multipliers": (1, 1, 1),
    "blocks": 3,
    "attention": (16, 8),
    "resample": "resblock",
    "time_conditioning": "scale_shift",
}


def feature_classifier_stage(
    name: str, *, epochs: int = 300, images: int = 50_000, **options: Any
) -> StageSettings:
    """A classifier for the feature distance, trained like CFD's (arXiv 2211.12039).

    SGD at 0.1 with momentum 0.9 and weight decay 5e-4, batch 128; the rate is divided by ten after
    half and after three quarters of the updates; random crops of images padded by 4 grey pixels,
    flips, cutout of 16. CFD's classifier also uses CIFAR's AutoAugment policy and is taken at the
    epoch of the best test accuracy; ours is taken after the last epoch, on inputs in [-1, 1].

    Args:
      name: "resnet" (ResNet-18) or "densenet" (DenseNet-201).
      epochs, images: number of epochs and of training images.
      **options: of the network.
    """
    return StageSettings(
        objective=objective("classification", shift=4, fill=0.0, cutout=16),
        network=network(name, **options),
        steps=-(-epochs * images // 128),
        batch_size=128,
        optimizer=OptimizerSettings(
            name="sgd", learning_rate=0.1, schedule="step", momentum=0.9, weight_decay=5e-4
        ),
        ema=(),
        shared=True,
    )


def pd_cifar(start: int = 8192, end: int = 1) -> Settings:
    """PD on CIFAR-10 as its authors train it (arXiv 2202.00512 and its code).

    Cosine schedule with log-SNR in [-20, 20], x-prediction, truncated SNR loss; halvings of 50,000
    updates, the last two of 100,000; the rate falls linearly from 5e-5 to 0 in each.

    Args:
      start, end: steps of the teacher and of the last student.
    """
    teacher = teacher_stage(
        network("unet", dropout=0.2, **PD_NETWORK),
        steps=800_000,
        batch_size=128,
        prediction="x0",
        error="v",
        weight="truncated_snr",
        optimizer=OptimizerSettings(
            name="adamw", learning_rate=2e-4, warmup=1000, weight_decay=1e-3, clip=1.0
        ),
        ema=(0.9999,),
    )
    chain = progressive(
        start,
        end,
        steps=50_000,
        steps_last=100_000,
        batch_size=128,
        optimizer=released_optimizer("linear"),
        network=network("unet", **PD_NETWORK),
        prediction="x0",
    )
    schedule = ScheduleSettings(name="cosine_log_snr", steps=start)
    return _scored("pd_cifar", schedule, {"teacher": teacher, **chain})


def cfd_cifar(method: str, counts: tuple[int, int, int] = (1024, 8, 1)) -> Settings:
    """CFD, RCFD or RDD on CIFAR-10 as the authors train them (arXiv 2211.12039, 2410.07679).

    A schedule of 1025 cosine levels, x-prediction. Halvings compare pixels down to 8 steps and
    features of a classifier below; 10,000 updates each, 20,000 for 2 and 1 steps and for all of
    RDD's; the rate falls as a cosine from 5e-5 to 0.

    Args:
      method: "cfd" or "rdd", with features of a DenseNet-201, or "rcfd", with a ResNet-18.
      counts: steps of the teacher, of the last PD student, and of the last student.
    """
    teacher = teacher_stage(
        network("unet", dropout=0.1, **CFD_NETWORK),
        steps=800_000,
        batch_size=128,
        prediction="x0",
        error="v",
        weight="truncated_snr",
        optimizer=OptimizerSettings(name="adam", learning_rate=2e-4, warmup=5000, clip=1.0),
        ema=(0.9999,),
    )
    chain = feature_halvings(
        method,
        counts,
        later={"steps": 20_000} if method == "rdd" else {},
        steps=10_000,
        steps_last=20_000,
        batch_size=128,
        optimizer=released_optimizer("cosine"),
        network=network("unet", **CFD_NETWORK),
        prediction="x0",
    )
    features = feature_classifier_stage("resnet" if method == "rcfd" else "densenet")
    schedule = ScheduleSettings(name="cosine", steps=counts[0], options={"clean": False})
    stages = {"feature_classifier": features, "teacher": teacher, **chain}
    return _scored(f"{method}_cifar", schedule, stages)


def cfd_imagenet64(counts: tuple[int, int, int] = (1024, 8, 1)) -> Settings:
    """CFD on class-conditional 64x64 ImageNet, with the settings of RDD's released code.

    tau 0.75, 50,000 updates per halving, batch 256, rate 1e-4. We found neither the authors'
    classifier nor the length of their teacher's training; ours are DenseNet-201 for 90 epochs and
    800,000 updates. Samples are not scored, because that needs the Inception network.

    Args:
      counts: steps of the teacher, of the last PD student, and of the last student.
    """
    options = {
        "channels": 128,
        "multipliers": (1, 2, 3, 4),
        "blocks": 3,
        "attention": (16, 8),
        "num_classes": 1000,
    }
    adam = OptimizerSettings(name="adam", learning_rate=1e-4, clip=1.0)
    teacher = teacher_stage(
        network("unet", **options),
        steps=800_000,
        batch_size=256,
        prediction="x0",
        error="v",
        weight="truncated_snr",
        optimizer=dataclasses.replace(adam, warmup=5000),
        ema=(0.9999,),
        conditional=True,
    )
    chain = feature_halvings(
        "cfd",
        counts,
        loss={"tau": 0.75},
        steps=50_000,
        batch_size=256,
        optimizer=dataclasses.replace(adam, schedule="cosine"),
    )
    features = feature_classifier_stage("densenet", epochs=90, images=1_281_167, num_classes=1000)
    schedule = ScheduleSettings(name="cosine", steps=counts[0], options={"clean": False})
    stages = {"feature_classifier": features, "teacher": teacher, **chain}
    return experiment("cfd_imagenet64", IMAGENET64, schedule, stages, _evaluation(counts[0]))


def _scored(name: str, schedule: ScheduleSettings, stages: Mapping[str, StageSettings]) -> Settings:
    """An experiment on CIFAR-10 whose samples a classifier scores."""
    stages = {"classifier": scorer_stage(), **stages}
    return experiment(name, CIFAR, schedule, stages, _evaluation(schedule.steps))


def _evaluation(levels: int) -> EvaluationSettings:
    return EvaluationSettings(
        samples=10_000,
        batch_size=250,
        teacher_samplers={"ddim": (1, 2, 4, 8), "dpm_solver_pp": (4, 8)},
        full_steps=min(1024, levels),
    )
