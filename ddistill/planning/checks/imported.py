"""Checks of a stage that starts from a network of another project."""

from collections.abc import Mapping

import jax
import numpy as np

from ddistill.errors import ConfigError
from ddistill.interop.imported import Imported
from ddistill.objectives import Objective
from ddistill.planning.build import in_full
from ddistill.planning.context import StageContext
from ddistill.schedules import Schedule, build_schedule


def check_imported(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` unless the stage can start from the network that it imports, if any."""
    stage, imported, path = context.settings, context.imported, context.path
    if imported is None:
        return
    named = f"{path}.source={stage.source!r}"
    _check_kind(context, objective, imported)
    if stage.init != "fresh" or stage.resume:
        raise ConfigError(f"{named} has the weights; leave {path}.init and {path}.resume out.")
    if stage.students.count:
        raise ConfigError(
            f"{named} is one network, but {path}.students.count={stage.students.count}. Make it a "
            "stage of one, and name that as the students' init."
        )
    ours, theirs = in_full(stage.network), in_full(imported.network)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise ConfigError(
                f"{path}.network.{key}={ours.get(key)!r}, but {stage.source} has "
                f"{theirs.get(key)!r}. Leave {path}.network out to take what is there."
            )
    if stage.prediction != imported.prediction:
        raise ConfigError(
            f"{path}.prediction={stage.prediction!r}, but {stage.source} predicts "
            f"{imported.prediction!r}. Leave it empty."
        )
    if imported.image_shape not in (None, context.data.image_shape):
        raise ConfigError(
            f"{named} makes images of shape {imported.image_shape} (height, width, channels); the "
            f"data are {context.data.image_shape}."
        )
    if 0 < imported.num_classes < context.data.num_classes:
        raise ConfigError(
            f"{named} knows {imported.num_classes} classes; the data have "
            f"{context.data.num_classes}. Use data of its classes."
        )
    _check_levels(imported, context.schedule, named)


def _check_kind(context: StageContext, objective: Objective, imported: Imported) -> None:
    """Raises `ConfigError` unless the objective is for networks of this kind."""
    stage, path = context.settings, context.path
    named = f"{path}.source={stage.source!r} is a {imported.kind}"
    if objective.trains.kind != imported.kind:
        raise ConfigError(
            f"{named}, but {path}.objective.name={stage.objective['name']!r} is for a "
            f"{objective.trains.kind}. Use an objective that trains a {imported.kind}."
        )
    if imported.kind == "classifier" and stage.steps:
        raise ConfigError(
            f"{named} with classes of its own, which the labels of the data do not name, but "
            f"{path}.steps={stage.steps}. Set steps=0, which takes it as it is."
        )


def _check_levels(imported: Imported, schedule: Schedule, named: str) -> None:
    """Raises `ConfigError` unless the run's levels are the levels of the network's training."""
    s = dict(imported.schedule or {})
    if "steps" not in s:
        wanted = f"name={s['name']!r}" if s else ""
        # A network of continuous levels takes c_noise as its time, as the schedule `karras` gives.
        fits = not s or np.allclose(schedule.time[1:], np.log(schedule.sigma[1:]) / 4)
    else:
        theirs = build_schedule(s["name"], s["steps"], **s["options"])
        wanted = f"name={s['name']!r}, steps={s['steps']}, options={_short(s['options'])}"
        fits = len(theirs.alpha) == len(schedule.alpha) and all(
            np.array_equal(a, b) for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(schedule))
        )
    if not fits:
        raise ConfigError(
            f"{named} was trained on other noise levels than config.schedule has; set "
            f"config.schedule to {wanted}."
        )


def _short(options: Mapping[str, object]) -> str:
    text = repr(dict(options))
    return text if len(text) < 200 else f"{text[:200]}... (as in its scheduler's config)"
