"""Identity of finished runs: training images and settings, by content and not by name."""

from collections.abc import Mapping, Sequence

from ddistill.errors import ConfigError
from ddistill.evaluation.comparison.join import FinishedRun
from ddistill.evaluation.report.report import flatten
from ddistill.objectives import make_objective
from ddistill.parsing import parse
from ddistill.planning.identity import learnt, normalised
from ddistill.settings import Settings

# Facts about training only: the reference images of a score are not mirrored.
_TRAINED = ("flip",)


def images_of(run: FinishedRun) -> dict[str, str]:
    """Identity of the training images and labels; empty if the run did not record it.

    Equal identities mean equal images in the same order, for any name of the folder.
    """
    return {k: v for k, v in flatten(run.identity).items() if k not in _TRAINED}


def recipes_of(runs: Sequence[FinishedRun]) -> list[dict[str, str]]:
    """The settings that affect training, by dotted name and without seeds.

    Imported files are identified by their hashes. If this version cannot read the settings of one
    run, the settings of all runs are compared as written.
    """
    try:
        return [_flat(run, _learnt(run)) for run in runs]
    except (ConfigError, KeyError):
        written = ({key: run.config.get(key) for key in ("schedule", "stages")} for run in runs)
        return [_flat(run, found) for run, found in zip(runs, written, strict=True)]


def _learnt(run: FinishedRun) -> dict[str, object]:
    settings = parse(run.config, Settings)
    stages = {name: _stage(run, settings, name) for name in settings.pipeline}
    return {"stages": stages, "schedule": learnt(settings.schedule)}


def _flat(run: FinishedRun, found: Mapping[str, object]) -> dict[str, str]:
    mirrored = {key: run.identity[key] for key in _TRAINED if key in run.identity}
    return flatten({**found, "data": mirrored})


def teachers_of(runs: Sequence[FinishedRun]) -> dict[str, Mapping[str, str] | None]:
    """Returns experiment -> settings of its teacher in `recipes_of`; None without a teacher."""
    return {
        run.experiment: _of_teacher(run, recipe)
        for run, recipe in zip(runs, recipes_of(runs), strict=True)
    }


def _of_teacher(run: FinishedRun, recipe: Mapping[str, str]) -> Mapping[str, str] | None:
    evaluation = run.config.get("evaluation")
    name = evaluation.get("teacher") if isinstance(evaluation, Mapping) else None
    own = {k: v for k, v in recipe.items() if k.startswith((f"stages.{name}.", "schedule", "data"))}
    return own if any(key.startswith("stages.") for key in own) else None


def _stage(run: FinishedRun, settings: Settings, name: str) -> dict[str, object]:
    stage = settings.stages[name]
    found = normalised(stage, make_objective(stage.objective), settings)
    if stage.source:
        found["source"] = run.sources.get(name, stage.source)
    return found
