"""Checks of a stage that makes pairs of noise and images, or reads them."""

from ddistill.errors import ConfigError, nearest
from ddistill.objectives import Objective
from ddistill.planning.context import StageContext
from ddistill.planning.plan import StagePlan
from ddistill.schedules import make_grid
from ddistill.settings import StageSettings


def check_pairs(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` unless the pairs that a stage names, or needs, are its teacher's."""
    stage, path = context.settings, context.path
    if objective.trains.kind == "pairs" and context.teacher is not None:
        _check_idle(stage, path, context.teacher.settings)
    known = {n: p for n, p in context.earlier.items() if p.objective.trains.kind == "pairs"}
    names = ", ".join(known) or "none, because no stage before this one makes pairs"
    reason = objective.requires.pairs
    if reason and not stage.pairs:
        raise ConfigError(f"{path}.pairs is empty, but {reason}. Allowed: {names}.")
    if not stage.pairs:
        return
    if stage.pairs not in known:
        raise ConfigError(
            f"{path}.pairs={stage.pairs!r} is not a stage before this one that makes pairs."
            f"{nearest(stage.pairs, known)} Allowed: {names}."
        )
    if not reason:
        given = ", ".join(f"{k}={v!r}" for k, v in stage.objective.items() if k != "name")
        method = f"'{stage.objective['name']}'" + (f" with {given}" if given else "")
        raise ConfigError(
            f"{path}.pairs={stage.pairs!r} has no effect: {method} reads no pairs. Leave pairs out."
        )
    theirs = known[stage.pairs].settings
    if theirs.guidance != stage.guidance:
        raise ConfigError(
            f"{path}.pairs={stage.pairs!r} were made with guidance={theirs.guidance}, but the "
            f"stage's teacher has guidance={stage.guidance}: set both alike."
        )
    if (
        theirs.teacher_checkpoint != stage.teacher_checkpoint
        or theirs.conditional != stage.conditional
    ):
        raise ConfigError(
            f"{path}.pairs={stage.pairs!r} were made by the teacher '{theirs.teacher}' "
            f"(conditional={theirs.conditional}), but the stage's teacher is '{stage.teacher}' "
            f"(conditional={stage.conditional}): noise leads elsewhere there. Make pairs of "
            f"'{stage.teacher}'."
        )
    _check_pairs_fit(context, objective, known[stage.pairs])


def _check_pairs_fit(context: StageContext, objective: Objective, pairs: StagePlan) -> None:
    """Raises `ConfigError` unless students start where the pairs do, and have pairs to see."""
    stage, path, table = context.settings, context.path, context.table
    g = stage.grid
    grid = make_grid(table.levels, g.steps or table.levels.num_steps, g.spacing, g.explicit or None)
    ours, theirs = table.indices[grid[-1]], pairs.indices[-1]
    if ours != theirs:
        raise ConfigError(
            f"{path}.pairs={stage.pairs!r} start at noise level {theirs}, but the stage's students "
            f"at level {ours}, where the same noise leads elsewhere: end the grids of both stages "
            "at the same level."
        )
    made, known = pairs.settings.steps * pairs.settings.batch_size, pairs.students[0].tables.classes
    own = objective.requires.own_pairs
    if own and known is not None and made < len(known):
        raise ConfigError(
            f"{path}: {own}, but '{stage.pairs}' makes {made} pairs of "
            f"{len(known)} classes in turn, so that some have none: make {len(known)} or more."
        )


def _check_idle(stage: StageSettings, path: str, teacher: StageSettings) -> None:
    """Raises `ConfigError` for settings of a stage of pairs that belong to a training.

    They change the digest of the stage but not the pairs.
    """
    usual = StageSettings(stage.objective, stage.steps, stage.batch_size)
    idle: dict[str, tuple[object, object]] = {
        "network": (stage.network, teacher.network),
        "optimizer": (stage.optimizer, usual.optimizer),
        "optimizers": (stage.optimizers, usual.optimizers),
        "ema": (stage.ema, usual.ema),
        "grid.time": (stage.grid.time, "mapped"),
        "students.count": (stage.students.count, 0),
        "init": (stage.init, "fresh"),
        "resume": (stage.resume, ""),
        "accumulate": (stage.accumulate, 1),
    }
    for key, (value, only) in idle.items():
        if value != only:
            shown = f"={value!r}" if isinstance(value, (int, str)) else ""
            raise ConfigError(
                f"{path}.{key}{shown}: a stage of pairs trains nothing and samples its teacher as "
                f"it is; leave {key} out."
            )
