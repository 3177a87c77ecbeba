"""PD, CFD and RCFD on 32x32 and 64x64 images, with the settings that their authors released."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddistill.recipes.common import network, objective, teacher_stage
from ddistill.recipes.progressive import CFD_DENSENET201, progressive, released_optimizer
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)

CIFAR = {"name": "tfds", "path": "cifar10", "flip": True}
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
    """A classifier whose features images are compared in, trained as CFD's (arXiv 2211.12039).

    SGD at 0.1 with momentum 0.9 and weight decay 5e-4, batch 128, the rate divided by ten after a
    half and three quarters; random crops of the image padded by 4 grey pixels, flips, cutout of
    16. Theirs has CIFAR's AutoAugment policy too, and takes the best epoch by test accuracy; ours
    takes the last one, on inputs in [-1, 1].

    Args:
      name: "resnet" (ResNet-18) or "densenet" (DenseNet-201).
      epochs, images: how often it sees how many training images.
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


def scorer_stage() -> StageSettings:
    """The classifier that scores samples: another one than what students are compared in."""
    return StageSettings(
        objective=objective("classification", shift=4),
        network=network("digits_classifier", width=64),
        steps=20_000,
        batch_size=128,
        optimizer=OptimizerSettings(learning_rate=1e-3, schedule="cosine", warmup=500),
        shared=True,
    )


def pd_cifar(start: int = 8192, end: int = 1) -> Settings:
    """PD on CIFAR-10 as its authors train it (arXiv 2202.00512 and its code).

    Continuous cosine with log-SNR in +-20, x-prediction, loss truncated SNR; halvings of 50,000
    updates, the last two of 100,000; the rate linear from 5e-5 to 0 in each.
    """
    teacher = teacher_stage(
        network("unet", dropout=0.2, **PD_NETWORK),
        800_000,
        128,
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
    return _settings("pd_cifar", schedule, {"teacher": teacher, **chain})


def cfd_cifar(
    name: str,
    method: str,
    feature_classifier: str,
    loss: Mapping[str, Any],
    *,
    start: int = 1024,
    switch: int = 8,
    end: int = 1,
) -> Settings:
    """CFD or RCFD on CIFAR-10 as its authors train them (arXiv 2211.12039 and its code).

    A table of 1025 cosine entries, x-prediction. Halvings compare pixels down to `switch` steps and
    the features of a classifier from there on; 10,000 updates each, 20,000 for 2 and 1 steps; the
    rate falls as a cosine from 5e-5 to 0.

    Args:
      name: of the experiment.
      method: "cfd" or "rcfd".
      feature_classifier: network of the classifier, see `feature_classifier_stage`.
      loss: `CFD_DENSENET201` or `RCFD_RESNET18`.
      start, switch, end: steps of the teacher, of the first teacher of the feature halvings, and
        of the last student.
    """
    teacher = teacher_stage(
        network("unet", dropout=0.1, **CFD_NETWORK),
        800_000,
        128,
        prediction="x0",
        error="v",
        weight="truncated_snr",
        optimizer=OptimizerSettings(name="adam", learning_rate=2e-4, warmup=5000, clip=1.0),
        ema=(0.9999,),
    )
    common: dict[str, Any] = {
        "steps": 10_000,
        "steps_last": 20_000,
        "batch_size": 128,
        "optimizer": released_optimizer("cosine"),
        "network": network("unet", **CFD_NETWORK),
        "prediction": "x0",
    }
    stages = {
        "feature_classifier": feature_classifier_stage(feature_classifier),
        "teacher": teacher,
        **progressive(start, switch, shared=True, **common),
        **progressive(
            switch,
            end,
            method=method,
            teacher=f"pd_n{switch}",
            classifier="feature_classifier",
            loss=loss,
            **common,
        ),
    }
    schedule = ScheduleSettings(name="cosine", steps=start, options={"clean": False})
    return _settings(name, schedule, stages)


def cfd_imagenet64(start: int = 1024, switch: int = 8, end: int = 1) -> Settings:
    """CFD on class-conditional 64x64 ImageNet, with the settings of RDD's released code.

    tau 0.75, 50,000 updates a halving, batch 256, rate 1e-4. What classifier and which length of
    the teacher's training they used was not found; ours are DenseNet-201 for 90 epochs and 800,000
    updates. Samples are not scored: that takes the Inception network.
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
        800_000,
        256,
        prediction="x0",
        error="v",
        weight="truncated_snr",
        optimizer=dataclasses.replace(adam, warmup=5000),
        ema=(0.9999,),
        conditional=True,
    )
    common: dict[str, Any] = {
        "steps": 50_000,
        "batch_size": 256,
        "optimizer": dataclasses.replace(adam, schedule="cosine"),
    }
    stages = {
        "feature_classifier": feature_classifier_stage(
            "densenet", epochs=90, images=1_281_167, num_classes=1000
        ),
        "teacher": teacher,
        **progressive(start, switch, shared=True, **common),
        **progressive(
            switch,
            end,
            method="cfd",
            teacher=f"pd_n{switch}",
            classifier="feature_classifier",
            loss={**CFD_DENSENET201, "tau": 0.75},
            **common,
        ),
    }
    schedule = ScheduleSettings(name="cosine", steps=start, options={"clean": False})
    data = {"name": "tfds", "path": "imagenet_resized/64x64", "flip": True}
    settings = _settings("cfd_imagenet64", schedule, stages, data)
    evaluation = dataclasses.replace(settings.evaluation, classifier="")
    pipeline = tuple(stages)
    return dataclasses.replace(settings, stages=stages, pipeline=pipeline, evaluation=evaluation)


def _settings(
    name: str,
    schedule: ScheduleSettings,
    stages: Mapping[str, StageSettings],
    data: Mapping[str, Any] = CIFAR,
) -> Settings:
    stages = {"classifier": scorer_stage(), **stages}
    return Settings(
        name=name,
        data=data,
        schedule=schedule,
        stages=stages,
        pipeline=tuple(stages),
        training=TrainingSettings(log_every=100, checkpoint_every=2000),
        evaluation=EvaluationSettings(
            samples=10_000,
            batch_size=250,
            teacher_samplers={"ddim": (1, 2, 4, 8), "dpm_solver_pp": (4, 8)},
            full_steps=min(1024, schedule.steps),
        ),
    )
