"""What every recipe uses: settings spelt out in full, and the shape of a teacher's stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ddistill import networks
from ddistill.data import setting_types
from ddistill.errors import ConfigError, check_choice
from ddistill.interop.sources import READERS, read_source
from ddistill.objectives import hyperparameters
from ddistill.settings import OptimizerSettings, ScheduleSettings, Settings, StageSettings


def to_config(settings: Settings, variant: str = "") -> ConfigDict:
    """The settings as an `ml_collections.ConfigDict`, which command-line flags can override.

    Settings of data that the experiment leaves open, those of other sources among them, are there
    as None, so that `--config.data.name=folder --config.data.path=FOLDER` works with any of them.

    A `variant` that names a network of another project, such as "diffusers:FOLDER", makes that the
    experiment's teacher, see `with_teacher`.
    """
    if _names_teacher(variant):
        settings = with_teacher(settings, variant)
    plain = dataclasses.asdict(settings)
    left_open = {key: placeholder(kind) for key, kind in setting_types().items()}
    return ConfigDict({**plain, "data": {**left_open, **plain["data"]}})


def objective(name: str, **changes: Any) -> dict[str, Any]:
    """An objective's name and all of its hyperparameters, some of them changed.

    Raises:
      ConfigError: there is no such objective or hyperparameter; with the nearest one.
    """
    usual = hyperparameters(name)
    for key in changes:
        check_choice(f"objective({name!r}): the hyperparameter", key, usual)
    return {"name": name, **usual, **changes}


def network(name: str, **changes: Any) -> dict[str, Any]:
    """A network's name and all of its options, some of them changed.

    Raises:
      ConfigError: there is no such network or option; with the nearest one.
    """
    usual = networks.defaults(name)
    for key in changes:
        check_choice(f"network({name!r}): the option", key, usual)
    return {"name": name, **usual, **changes}


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


def edm_denoising(num_classes: int) -> dict[str, Any]:
    """EDM's training of a conditional teacher (arXiv 2206.00364) that can be guided afterwards.

    A tenth of the labels is dropped (arXiv 2207.12598).
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

    Names of others' networks pass, see `to_config`.
    """
    if variant not in allowed and not _names_teacher(variant):
        names = ", ".join(f"':{v}'" for v in allowed if v)
        raise ConfigError(
            f"Variant ':{variant}' is not known. Allowed: {names}, none, or a teacher: "
            f"{', '.join(f':{kind}:PATH' for kind in READERS)}."
        )


def _names_teacher(variant: str) -> bool:
    return variant.partition(":")[0] in READERS


def with_teacher(settings: Settings, source: str, stage: str = "teacher") -> Settings:
    """The same experiment, with a teacher of another project instead of one that it trains.

    The noise levels become the teacher's, and students that take over its network get that one.
    Samplers of more steps than it has levels are left out of the evaluation.

    Args:
      settings: an experiment.
      source: "diffusers:FOLDER" or "edm:FILE".
      stage: name of the teacher's stage.

    Raises:
      ConfigError: there is no such stage, or what `ddistill.interop.sources.read_source` says of
        the files.
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
        # EDM's files settle the kind of the levels and not their number.
        own = {"steps": schedule.steps, "options": {}}
        schedule = ScheduleSettings(**{**own, **found.schedule})
    stages = {**settings.stages, stage: teacher}
    e = settings.evaluation
    if schedule.name != "karras":  # no other table is EDM's
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
    """The stage, its levels rows of the table and not EDM's own."""
    if stage.grid.spacing != "edm":
        return stage
    return dataclasses.replace(stage, grid=dataclasses.replace(stage.grid, spacing="trailing"))
