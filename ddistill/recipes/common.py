"""What all recipes share: settings with every option listed, and the stages of most experiments."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ddistill import networks
from ddistill.data import setting_types
from ddistill.errors import ConfigError, check_choice
from ddistill.interop.sources import TEACHERS, read_source
from ddistill.objectives import hyperparameters
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)

Options = Mapping[str, Any]  # by name: options of a network, hyperparameters, settings of data


class Budget(NamedTuple):
    """Length of a training: number of updates, images in each."""

    updates: int
    batch_size: int


def to_config(settings: Settings, variant: str = "") -> ConfigDict:
    """The settings as an `ml_collections.ConfigDict`, which command-line flags can override.

    Data settings that the experiment does not set, including settings of other data sources, are
    None, so that `--config.data.name=folder --config.data.path=FOLDER` works with every config.

    A `variant` that names a network of another project, such as "diffusers:FOLDER", replaces the
    experiment's teacher by that network, see `with_teacher`.
    """
    if _names_teacher(variant):
        settings = with_teacher(settings, variant)
    plain = dataclasses.asdict(settings)
    left_open = {key: placeholder(kind) for key, kind in setting_types().items()}
    return ConfigDict({**plain, "data": {**left_open, **plain["data"]}})


def objective(name: str, **changes: Any) -> Options:
    """An objective's name and all of its hyperparameters; `changes` replace defaults.

    Raises:
      ConfigError: there is no such objective or hyperparameter; the message suggests the nearest.
    """
    usual = hyperparameters(name)
    for key in changes:
        check_choice(f"objective({name!r}): the hyperparameter", key, usual)
    return {"name": name, **usual, **changes}


def network(name: str, **changes: Any) -> Options:
    """A network's name and all of its options; `changes` replace defaults.

    Raises:
      ConfigError: there is no such network or option; the message suggests the nearest.
    """
    usual = networks.defaults(name)
    for key in changes:
        check_choice(f"network({name!r}): the option", key, usual)
    return {"name": name, **usual, **changes}


def teacher_stage(
    net: Options, *, error: str = "v", weight: str = "uniform", **stage: Any
) -> StageSettings:
    """A diffusion teacher trained on every level of the schedule; shared between runs.

    Args:
      net: the network's name and options, see `network`.
      error, weight: the loss, see `ddistill.objectives.denoising.Denoising`.
      **stage: fields of `StageSettings`; `steps` and `batch_size` are required, and `prediction`
        is "v" by default.
    """
    return StageSettings(
        objective=objective("denoising", error=error, weight=weight),
        network=net,
        **{"prediction": "v", "shared": True, **stage},
    )


def scorer_stage() -> StageSettings:
    """The classifier of 32x32 images that scores samples; no student is trained on its features."""
    return StageSettings(
        objective=objective("classification", shift=4),
        network=network("digits_classifier", width=64),
        steps=20_000,
        batch_size=128,
        optimizer=OptimizerSettings(learning_rate=1e-3, schedule="cosine", warmup=500),
        shared=True,
    )


def experiment(
    name: str,
    data: Options,
    schedule: ScheduleSettings,
    stages: Mapping[str, StageSettings],
    evaluation: EvaluationSettings,
    checkpoint_every: int = 2000,
) -> Settings:
    """An experiment that runs all of its stages, in their order.

    The stage "classifier" scores samples; without that stage, samples are not scored.
    """
    classifier = "classifier" if "classifier" in stages else ""
    return Settings(
        name=name,
        data=data,
        schedule=schedule,
        stages=stages,
        pipeline=tuple(stages),
        training=TrainingSettings(
            log_every=100, checkpoint_every=checkpoint_every, preview_every=checkpoint_every
        ),
        evaluation=dataclasses.replace(evaluation, classifier=classifier),
    )


def edm_denoising(num_classes: int) -> Options:
    """The objective of EDM (arXiv 2206.00364) for a conditional teacher.

    A tenth of the labels is dropped, so that samplers can use classifier-free guidance (arXiv
    2207.12598).
    """
    return objective(
        "denoising",
        error="x0",
        weight="edm",
        levels="lognormal",
        label_dropout=0.1,
        null_class=num_classes,
    )


def check_variant(variant: str, allowed: Sequence[str] = ("", "smoke")) -> None:
    """Raises `ConfigError` unless `variant`, the part after the colon, is one of `allowed`.

    Networks of other projects are allowed too, see `to_config`.
    """
    if variant not in allowed and not _names_teacher(variant):
        names = ", ".join(f"':{v}'" for v in allowed if v)
        raise ConfigError(
            f"Variant ':{variant}' is not known. Allowed: {names}, none, or a teacher: "
            f"{', '.join(f':{kind}:PATH' for kind in TEACHERS)}."
        )


def _names_teacher(variant: str) -> bool:
    return variant.partition(":")[0] in TEACHERS


def with_teacher(settings: Settings, source: str, stage: str = "teacher") -> Settings:
    """The same experiment with a pretrained teacher of another project.

    The noise levels become the teacher's, and students without a network of their own have the
    architecture of the new teacher. The evaluation leaves out samplers with more steps than the
    teacher has levels.

    Args:
      settings: an experiment.
      source: "diffusers:FOLDER" or "edm:FILE".
      stage: name of the teacher's stage.

    Raises:
      ConfigError: there is no such stage, or `ddistill.interop.sources.read_source` cannot read the
        files.
    """
    check_choice("the teacher's stage", stage, settings.stages)
    found = read_source(source, f"config.stages.{stage}.source")
    teacher = StageSettings(
        objective=objective("denoising"),
        source=source,
        network=found.network,
        prediction=found.prediction,
        conditional=found.num_classes > 0,
        steps=0,
        batch_size=settings.stages[stage].batch_size,
        ema=(),
        shared=True,
    )
    schedule = settings.schedule
    if found.schedule:
        # EDM's files determine the kind of the levels and not their number.
        own = {"steps": schedule.steps, "options": {}}
        schedule = ScheduleSettings(**{**own, **found.schedule})
    stages = {**settings.stages, stage: teacher}
    e = settings.evaluation
    if schedule.name != "karras":  # EDM's own levels need this schedule
        e = dataclasses.replace(e, teacher_spacing="trailing")
        stages = {name: _on_its_table(own) for name, own in stages.items()}
    samplers = {
        name: tuple(count for count in counts if count <= schedule.steps)
        for name, counts in e.teacher_samplers.items()
    }
    full = 0 if e.full_steps > schedule.steps else e.full_steps
    return dataclasses.replace(
        settings,
        schedule=schedule,
        stages=stages,
        evaluation=dataclasses.replace(e, teacher_samplers=samplers, full_steps=full),
    )


def _on_its_table(stage: StageSettings) -> StageSettings:
    """The stage with levels from the schedule in place of EDM's own."""
    if stage.grid.spacing != "edm":
        return stage
    return dataclasses.replace(stage, grid=dataclasses.replace(stage.grid, spacing="trailing"))
