"""What finished runs were trained on, and with which settings: by content, not by name or place."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddistill.errors import ConfigError
from ddistill.evaluation.comparison.join import FinishedRun
from ddistill.evaluation.report.report import flatten
from ddistill.objectives import make_objective
from ddistill.planning.identity import learnt, normalised
from ddistill.settings import Settings, parse

# Mirroring belongs to a training, and the images that runs are scored against are not mirrored.
_TRAINED = ("flip",)


def images_of(run: FinishedRun) -> dict[str, str]:
    """The training images and their labels, by what they are; empty where the run has not noted it.

    Equal ones are the same images in the same order, whatever their folder is called.
    """
    return {k: v for k, v in flatten(run.identity).items() if k not in _TRAINED}


def recipes_of(runs: Sequence[FinishedRun]) -> list[dict[str, str]]:
    """The settings that the stages of runs learn from, by dotted name and without their seeds.

    Other projects' files count by their hashes. Where this version cannot read the settings of one
    of the runs, those of all count as they are written.
    """
    try:
        return [_flat(run, _learnt(run)) for run in runs]
    except (ConfigError, KeyError):
        written = ({key: run.config.get(key) for key in ("schedule", "stages")} for run in runs)
        return [_flat(run, found) for run, found in zip(runs, written, strict=True)]


def _learnt(run: FinishedRun) -> dict[str, Any]:
    settings = parse(run.config, Settings)
    stages = {name: _stage(run, settings, name) for name in settings.pipeline}
    return {"stages": stages, "schedule": learnt(settings.schedule)}


def _flat(run: FinishedRun, found: Mapping[str, Any]) -> dict[str, str]:
    mirrored = {key: run.identity[key] for key in _TRAINED if key in run.identity}
    return flatten({**found, "data": mirrored})


def teachers_of(runs: Sequence[FinishedRun]) -> dict[str, Mapping[str, str] | None]:
    """By experiment, what `recipes_of` has of its teacher; None where the run names no teacher."""
    return {
        run.experiment: _of_teacher(run, recipe)
        for run, recipe in zip(runs, recipes_of(runs), strict=True)
    }


def _of_teacher(run: FinishedRun, recipe: Mapping[str, str]) -> Mapping[str, str] | None:
    evaluation = run.config.get("evaluation")
    name = evaluation.get("teacher") if isinstance(evaluation, Mapping) else None
    own = {k: v for k, v in recipe.items() if k.startswith((f"stages.{name}.", "schedule", "data"))}
    return own if any(key.startswith("stages.") for key in own) else None


def _stage(run: FinishedRun, settings: Settings, name: str) -> dict[str, Any]:
    stage = settings.stages[name]
    found = normalised(stage, make_objective(stage.objective), settings)
    if stage.source:
        found["source"] = run.sources.get(name, stage.source)
    return found
