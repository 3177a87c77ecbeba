"""Experiments on the embedded digits, small enough for any laptop."""

from collections.abc import Mapping
from typing import Any

from ddistill.recipes.common import network, objective, teacher_stage
from ddistill.recipes.progressive import progressive
from ddistill.recipes.sfddm import sfddm_default
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)


def digits(name: str, students: Mapping[str, StageSettings]) -> Settings:
    """An experiment on the embedded digits: a classifier, a teacher, and the given students.

    Classifier and teacher are shared: experiments of equal seed train them once.
    """
    classifier = StageSettings(
        objective=objective("classification", shift=1, label_smoothing=0.05),
        network=network("digits_classifier"),
        steps=600,
        batch_size=64,
        optimizer=OptimizerSettings(learning_rate=2e-3, schedule="cosine", warmup=50),
        ema=(0.99,),
        shared=True,
    )
    teacher = teacher_stage(
        network(
            "unet",
            channels=16,
            multipliers=(1, 2),
            blocks=1,
            attention=(4,),
            head_dim=16,
            norm_groups=8,
            out_channels=1,
        ),
        steps=2500,
        batch_size=64,
        optimizer=OptimizerSettings(
            learning_rate=2e-3, schedule="cosine", warmup=100, final_scale=0.02, clip=1.0
        ),
        ema=(0.995,),
    )
    return Settings(
        name=name,
        data={"name": "digits"},
        schedule=ScheduleSettings(name="sigmoid_beta", steps=256),
        stages={"classifier": classifier, "teacher": teacher, **students},
        pipeline=("classifier", "teacher", *students),
        training=TrainingSettings(log_every=50, checkpoint_every=500),
        evaluation=EvaluationSettings(
            samples=1024,
            teacher_samplers={"ddim": (1, 2, 4, 8, 16, 32)},
            full_sampler="ddim",
            full_steps=256,
        ),
    )


def digits_student(levels: int, **changes: Any) -> StageSettings:
    """Our SFDDM student on digits, with `changes` to `sfddm_default`."""
    optimizer = OptimizerSettings(
        learning_rate=3e-3, schedule="cosine", warmup=50, final_scale=0.02, clip=1.0
    )
    return sfddm_default(
        levels, **{"steps": 700, "batch_size": 64, "optimizer": optimizer, **changes}
    )


def digits_halvings(start: int, end: int, **changes: Any) -> dict[str, StageSettings]:
    """A chain of `progressive` on digits."""
    optimizer = OptimizerSettings(
        learning_rate=2e-3, schedule="cosine", warmup=50, final_scale=0.02, clip=1.0
    )
    options = {"steps": 400, "steps_last": 800, "batch_size": 64, "optimizer": optimizer, **changes}
    return progressive(start, end, **options)
