"""Parts that config files share: stages with their published or default settings, and `smoke`.

Recipes return the dataclasses of `ddistill.settings` with every hyperparameter spelt out, so that
each of them can be overridden on the command line; `to_config` makes the `ConfigDict`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ddistill import networks
from ddistill.errors import ConfigError
from ddistill.objectives import OBJECTIVES
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)


def to_config(settings: Settings) -> ConfigDict:
    """The settings as an `ml_collections.ConfigDict`, which command-line flags can override."""
    return ConfigDict(dataclasses.asdict(settings))


def objective(name: str, **changes: Any) -> dict[str, Any]:
    """An objective's name and all of its hyperparameters, some of them changed."""
    defaults = {f.name: f.default for f in dataclasses.fields(OBJECTIVES[name])}
    return {"name": name, **defaults, **changes}


def network(name: str, **changes: Any) -> dict[str, Any]:
    """A network's name and all of its options, some of them changed."""
    return {"name": name, **networks.defaults(name), **changes}


def teacher_stage(
    net: Mapping[str, Any],
    steps: int,
    batch_size: int,
    *,
    optimizer: OptimizerSettings,
    prediction: str = "v",
    error: str = "v",
    weight: str = "uniform",
    **changes: Any,
) -> StageSettings:
    """A diffusion teacher trained on every level of the schedule; shared between runs."""
    return StageSettings(
        objective=objective("denoising", error=error, weight=weight),
        network=net,
        prediction=prediction,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        shared=True,
        **changes,
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


def smoke(settings: Settings, net: Mapping[str, Any], keep: Sequence[str] = ()) -> Settings:
    """The same experiment shrunk to seconds: few steps, a narrow network, few samples.

    Args:
      settings: the full experiment.
      net: options that replace those of every U-Net.
      keep: the stages to keep; all where it is empty.
    """
    names = tuple(keep) or settings.pipeline
    stages = {name: _smoke_stage(settings.stages[name], net) for name in names}
    evaluation = dataclasses.replace(
        settings.evaluation,
        samples=64,
        batch_size=64,
        teacher_samplers={k: tuple(v)[:2] for k, v in settings.evaluation.teacher_samplers.items()},
        full_steps=min(8, settings.evaluation.full_steps or 8),
        grid_images=8,
        strip_images=4,
    )
    training = dataclasses.replace(settings.training, log_every=5, checkpoint_every=10)
    return dataclasses.replace(
        settings,
        name=f"{settings.name}-smoke",
        stages=stages,
        pipeline=names,
        evaluation=evaluation,
        training=training,
    )


def _smoke_stage(stage: StageSettings, net: Mapping[str, Any]) -> StageSettings:
    is_unet = stage.network.get("name") == "unet"
    optimizer = dataclasses.replace(stage.optimizer, warmup=min(2, stage.optimizer.warmup))
    objective_settings = dict(stage.objective)
    if objective_settings.get("substeps", 0) > 2:
        objective_settings["substeps"] = 2
    return dataclasses.replace(
        stage,
        objective=objective_settings,
        network={**stage.network, **(net if is_unet else {})},
        steps=20,
        batch_size=16,
        optimizer=optimizer,
    )


def check_variant(variant: str, allowed: Sequence[str] = ("", "smoke")) -> None:
    """Raises `ConfigError` unless `variant`, the part after the colon, is one of `allowed`."""
    if variant not in allowed:
        names = ", ".join(f"':{v}'" for v in allowed if v)
        raise ConfigError(f"Variant ':{variant}' is not known. Allowed: {names}, or none.")


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
    released U-Net has linear attention at its outer levels; ours attends at the innermost level and
    in the middle only.

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


def smoke_on_digits(settings: Settings) -> Settings:
    """`smoke` on the embedded digits, for experiments whose data a visitor may not have."""
    shrunk = smoke(settings, {"channels": 8, "head_dim": 8, "out_channels": 1, "attention": (1,)})
    students = {
        name: dataclasses.replace(stage, grid=dataclasses.replace(stage.grid, steps=4))
        if stage.teacher
        else stage
        for name, stage in shrunk.stages.items()
    }
    evaluation = dataclasses.replace(
        shrunk.evaluation, teacher_samplers={"ddim": (4,)}, full_steps=8
    )
    return dataclasses.replace(
        shrunk, data={"name": "digits"}, stages=students, evaluation=evaluation
    )
