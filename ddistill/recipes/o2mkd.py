"""O2MKD's stages (arXiv 2410.04191): a shared warm-up, then students that each take a range."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddistill.recipes.common import network as full_network
from ddistill.recipes.common import objective, teacher_stage
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    StudentsSettings,
    TrainingSettings,
)

# DDPM's networks (arXiv 2006.11239): 35.7 M parameters at 32 pixels, 113.7 M at 256.
DDPM_32 = {"multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,)}
DDPM_256 = {"multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (16,)}


def o2mkd(
    count: int,
    *,
    steps: int,
    batch_size: int,
    optimizer: OptimizerSettings,
    samplers: Mapping[str, tuple[int, ...]],
    network: Mapping[str, Any] | None = None,
    prediction: str = "",
    warmup_steps: int = 0,
    start: str = "",
    name: str = "",
    loss: Mapping[str, Any] | None = None,
    students: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, StageSettings]:
    """Stages of K students that share out the noise levels of the stage "teacher".

    Students of the teacher's own network start from its weights. Narrower ones start from one
    student that was trained on all levels: a student that has only ever seen its range would spend
    its updates on what images look like in general.

    Args:
      count: K.
      steps: updates of every student, the warm-up left out.
      batch_size, optimizer: of both stages, for each student.
      samplers: what the students are scored with, see `StageSettings.samplers`.
      network: that of the students; the teacher's where it is None.
      prediction: what such a network predicts.
      warmup_steps: updates of the shared student, for a `network` of its own.
      start: an earlier stage of that network to start from, instead of a warm-up.
      name: ends the stages' names, "o2mkd_warmup{name}" and "o2mkd{name}_k{count}".
      loss: an objective's name and its hyperparameters; O2MKD's own by default.
      students: further settings of `StudentsSettings`.
      **changes: further settings of both stages.
    """
    shared = StageSettings(
        objective=objective(**{"name": "o2mkd", **(loss or {})}),
        teacher="teacher",
        network=network or {},
        prediction=prediction,
        steps=warmup_steps,
        batch_size=batch_size,
        optimizer=optimizer,
        **changes,
    )
    warm = start or (f"o2mkd_warmup{name}" if network else "teacher")
    specialists = dataclasses.replace(
        shared,
        init=warm,
        steps=steps,
        students=StudentsSettings(count=count, partition="timesteps", **(students or {})),
        method="o2mkd",
        samplers=samplers,
    )
    first = {warm: shared} if network and not start else {}
    return {**first, f"o2mkd{name}_k{count}": specialists}


def o2mkd_paper(
    name: str,
    data: Mapping[str, Any],
    net: Mapping[str, Any],
    *,
    width: int,
    count: int = 4,
    teacher_updates: int,
    teacher_batch: int,
    teacher_rate: float,
    budget: int,
    batch_size: int,
    classifier: StageSettings | None = None,
) -> Settings:
    """O2MKD from a DDPM teacher of width 128 with T = 1000 linear betas and eps-prediction.

    The paper (arXiv 2410.04191) names the data and the teacher; widths, K and lengths were not
    found and are our choice: Adam at 2e-4 after 5,000 steps of warm-up, global norm 1, average
    0.9999. A quarter of the budget trains the shared student.

    Args:
      name: of the experiment.
      data: its data settings.
      net: the U-Net's options but its width.
      width: of the students.
      count: K.
      teacher_updates, teacher_batch, teacher_rate: the teacher's training.
      budget: updates of all students together, the shared one among them.
      batch_size: of every student.
      classifier: scores the samples; None samples without scores.
    """
    teacher = teacher_stage(
        full_network("unet", dropout=0.1, **net),
        teacher_updates,
        teacher_batch,
        prediction="eps",
        error="eps",
        optimizer=OptimizerSettings(learning_rate=teacher_rate, warmup=5000, clip=1.0),
        ema=(0.9999,),
    )
    specialists = o2mkd(
        count,
        steps=(budget - budget // 4) // count,
        batch_size=batch_size,
        optimizer=OptimizerSettings(learning_rate=2e-4, warmup=5000, clip=1.0),
        samplers={"ddim": (100,), "dpm_solver_pp": (20,)},
        network=full_network("unet", channels=width, **net),
        prediction="eps",
        warmup_steps=budget // 4,
        name=f"_w{width}",
        ema=(0.9999,),
    )
    stages = {"teacher": teacher, **specialists}
    if classifier is not None:
        stages = {"classifier": classifier, **stages}
    return Settings(
        name=name,
        data=data,
        schedule=ScheduleSettings(name="linear_beta", steps=1000),
        stages=stages,
        pipeline=tuple(stages),
        training=TrainingSettings(log_every=100, checkpoint_every=5000),
        evaluation=EvaluationSettings(
            classifier="classifier" if classifier is not None else "",
            samples=10_000 if classifier is not None else 256,
            batch_size=100,
            teacher_samplers={"ddim": (100,), "dpm_solver_pp": (20,)},
            full_sampler="ddim",
            full_steps=1000,
        ),
    )
