"""SFDDM's stages (arXiv 2405.14961): ours, the authors', and their four experiments."""

from collections.abc import Mapping
from typing import Any

from ddistill.recipes.common import network, objective, teacher_stage
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)


def sfddm_default(
    levels: int,
    *,
    steps: int,
    batch_size: int,
    optimizer: OptimizerSettings,
    substeps: int = 8,
    ema: tuple[float, ...] = (0.995,),
    init: str = "teacher",
    **changes: Any,
) -> StageSettings:
    """Our SFDDM student: trailing grid, mapped time, teacher's weights, hidden-variable distance.

    Its teacher is the stage "teacher".

    Args:
      levels: T', the student's steps.
      steps, batch_size, optimizer, ema: its training.
      substeps: teacher steps folded into one student step.
      init: where its first weights come from: the teacher, or a student of more steps.
      **changes: hyperparameters of `ddistill.objectives.sfddm.SFDDM`.
    """
    return StageSettings(
        objective=objective("sfddm", substeps=substeps, **changes),
        teacher="teacher",
        init=init,
        grid=GridSettings(steps=levels, spacing="trailing", time="mapped"),
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        ema=ema,
        method="sfddm",
    )


def sfddm_released(levels: int, *, prediction: str, steps: int, batch_size: int) -> StageSettings:
    """The authors' released code: L1 on the raw output plus L1 on the last features, fresh weights.

    The grid is "leading", the student is told its own index, Adam has a constant rate of 2e-4, and
    there is neither EMA nor clipping (arXiv 2405.14961). `prediction` is the teacher's.
    """
    released = objective(
        "sfddm",
        output_weight=1.0,
        output=prediction,
        output_norm="l1",
        feature_weight=1.0,
        tap="last",
        hidden_weight=0.0,
    )
    return StageSettings(
        objective=released,
        teacher="teacher",
        init="fresh",
        grid=GridSettings(steps=levels, spacing="leading", time="index"),
        steps=steps,
        batch_size=batch_size,
        optimizer=OptimizerSettings(name="adam", learning_rate=2e-4),
        ema=(),
        method="sfddm_released",
    )


SFDDM_PAPER_NETWORK = {
    "channels": 64,
    "multipliers": (1, 2, 4, 8),
    "blocks": 2,
    "head_dim": 32,
    "norm_groups": 8,
    "time_conditioning": "scale_shift",
}


def sfddm_paper(
    name: str,
    data: Mapping[str, Any],
    *,
    innermost: int,
    prediction: str,
    levels: int,
    teacher_updates: int,
    teacher_batch: int,
    updates: int,
    batch_size: int,
    classifier: StageSettings | None = None,
) -> Settings:
    """One of the four experiments of arXiv 2405.14961, with the settings of the released code.

    T = 1024 on the sigmoid schedule, Adam at 2e-4 throughout, T' levels on the leading grid. The
    released U-Net has 35.7 M parameters, with two blocks a level on the way up and linear attention
    at its outer levels; ours has 63.3 M, with three blocks on the way up (as DDPM), and attends at
    the innermost level and in the middle only. Both count; the published numbers are theirs.

    Args:
      name: name of the experiment.
      data: data settings.
      innermost: side of the innermost level in pixels, image side / 8.
      prediction: what teacher and student predict.
      levels: T'.
      teacher_updates, teacher_batch: the teacher's training.
      updates, batch_size: the student's.
      classifier: a stage whose features score the samples; without it nothing is scored.
    """
    adam = OptimizerSettings(name="adam", learning_rate=2e-4)
    teacher = teacher_stage(
        network("unet", attention=(innermost,), **SFDDM_PAPER_NETWORK),
        teacher_updates,
        teacher_batch,
        optimizer=adam,
        prediction=prediction,
        error=prediction,
        ema=(0.995,),
    )
    student = sfddm_released(levels, prediction=prediction, steps=updates, batch_size=batch_size)
    stages = {"teacher": teacher, f"sfddm_n{levels}": student}
    if classifier is not None:
        stages = {"classifier": classifier, **stages}
    return Settings(
        name=name,
        data=data,
        schedule=ScheduleSettings(name="sigmoid_beta", steps=1024),
        stages=stages,
        pipeline=tuple(stages),
        training=TrainingSettings(log_every=100, checkpoint_every=2000),
        evaluation=EvaluationSettings(
            classifier="classifier" if classifier is not None else "",
            samples=10_000 if classifier is not None else 256,
            batch_size=100,
            teacher_samplers={"ddim": tuple(sorted({levels, 16}))},
            full_sampler="ddim",
            full_steps=1024,
        ),
    )
