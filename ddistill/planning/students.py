"""The students of a stage: the levels, seed and rate of each, planned before anything compiles."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from ddistill.errors import ConfigError, nearest
from ddistill.objectives import Objective, make_level_tables
from ddistill.objectives.base import static_part
from ddistill.objectives.inputs import Share, student_levels
from ddistill.objectives.parts import StageFacts
from ddistill.optimizers import check_optimizer
from ddistill.partitions import Partition, level_ranges
from ddistill.planning.checks.students import BY_CLASS, BY_LEVEL, check_students
from ddistill.planning.context import StageContext
from ddistill.planning.partitions import plan_partition
from ddistill.planning.plan import StudentPlan
from ddistill.schedules import edm_sampling, make_grid
from ddistill.settings import StageSettings, StudentsSettings

# What a sweep may list beside the numbers of the objective.
SWEPT = ("grid_steps", "seed", "learning_rate")
_WHOLE = ("grid_steps", "seed")


def plan_students(
    context: StageContext, objective: Objective, facts: StageFacts
) -> tuple[tuple[StudentPlan, ...], Partition | None]:
    """The students of a stage, and its partition if it has one.

    Args:
      context: the stage.
      objective: its method, not yet prepared.
      facts: what it is prepared with; the grid of each student takes the place of theirs.

    Raises:
      ConfigError: settings that cannot work.
    """
    stage, path, num_classes = context.settings, context.path, context.data.num_classes
    by_class = stage.conditional and not context.reads_text
    check_students(stage.students, f"{path}.students")
    _check_levels(stage.students, objective, f"{path}.students")
    _check_sweep(stage, objective, f"{path}.students")
    swept = [_swept(context, (objective, facts), k) for k in range(max(1, stage.students.count))]
    whole = Share(
        full_range_share=stage.students.full_range_share or None,
        classes=tuple(range(num_classes)) if by_class else None,
        num_classes=num_classes,
    )
    if stage.grid.spacing == "edm" and objective.trains.kind == "pairs" and not stage.grid.explicit:
        return (_plan_edm_student(context, swept[0], whole),), None
    students = tuple(_plan_student(context, one, whole) for one in swept)
    _check_programs(students, f"{path}.students")
    if stage.students.partition == "none":
        return students, None
    levels = students[0].levels
    try:
        partition = plan_partition(context, levels)
        low, high = level_ranges(partition, levels, stage.students.margin)
    except ConfigError as error:  # its message begins with "students"
        raise ConfigError(f"{path}.{error}") from error
    shares = [
        dataclasses.replace(
            whole,
            low=int(a),
            high=int(b),
            classes=tuple(np.flatnonzero(own).tolist()) if by_class else None,
        )
        for a, b, own in zip(low, high, partition.owned_classes(num_classes))
    ]
    students = tuple(_plan_student(context, one, own) for one, own in zip(swept, shares))
    return students, partition


@dataclass(frozen=True)
class _Swept:
    """One student's settings."""

    label: str
    stage: StageSettings
    seed: int
    stream: str
    objective: Objective
    facts: StageFacts


def _swept(context: StageContext, method: tuple[Objective, StageFacts], k: int) -> _Swept:
    """The settings of student `k`; students of a partition differ in their random streams alone."""
    objective, facts = method
    stage, sweep = context.settings, context.settings.students.sweep
    values = {key: entries[k] for key, entries in sweep.items()}
    grid, optimizer = stage.grid, stage.optimizer
    if "grid_steps" in values:
        grid = dataclasses.replace(grid, steps=int(values["grid_steps"]))
    if "learning_rate" in values:
        rate = float(values["learning_rate"])
        optimizer = dataclasses.replace(optimizer, learning_rate=rate)
        check_optimizer(optimizer, stage.steps, f"{context.path}.students.sweep: optimizer")
    changes = {k: _number(objective, k, value) for k, value in values.items() if k not in SWEPT}
    return _Swept(
        label=", ".join(f"{key}={value:g}" for key, value in values.items()),
        stage=dataclasses.replace(stage, grid=grid, optimizer=optimizer),
        seed=int(values.get("seed", context.run.seed)),
        # Students of a sweep have equal random streams, so that they differ in what is swept alone.
        stream=str(k) if k and not sweep else "",
        objective=dataclasses.replace(objective, **changes),
        facts=facts,
    )


def _is_whole(objective: Objective, key: str) -> bool:
    """Whether a sweep of `key` lists integers."""
    return key in _WHOLE or isinstance(objective.dynamic_hparams().get(key), int)


def _number(objective: Objective, key: str, value: float) -> int | float:
    """A swept value as an integer or a float, whichever its key takes."""
    return int(value) if _is_whole(objective, key) else float(value)


def _plan_student(context: StageContext, one: _Swept, share: Share) -> StudentPlan:
    grid_settings, students, table = one.stage.grid, one.stage.students, context.table
    grid = _grid(context, one.stage)
    try:
        objective = one.objective.prepare(dataclasses.replace(one.facts, grid=grid))
    except ConfigError as error:  # its message begins with "objective"
        raise ConfigError(f"{context.path}.{error}") from None
    tables = make_level_tables(
        table.levels,
        grid,
        grid_settings.time,
        context.rows,
        share,
        objective.dynamic_hparams(),
    )
    return StudentPlan(
        label=one.label,
        levels=student_levels(table.levels, grid, grid_settings.time),
        indices=table.indices[grid],
        tables=tables.with_steps(one.stage.steps),
        objective=objective,
        seed=one.seed,
        stream=one.stream,
        optimizer=one.stage.optimizer,
        classes=tuple(share.classes)
        if share.classes is not None and students.partition in BY_CLASS
        else None,
    )


def _plan_edm_student(context: StageContext, one: _Swept, share: Share) -> StudentPlan:
    """A stage of pairs on EDM's own levels, which need not be rows of the table."""
    table = context.table
    steps, made = one.stage.grid.steps or table.levels.num_steps, table.schedule
    key = f"{context.path}.grid.spacing"
    levels, nearest_rows = edm_sampling(made.name, made.options, table.levels, steps, key)
    grid = dataclasses.replace(one.stage.grid, spacing="trailing", steps=1)
    plain = dataclasses.replace(one, stage=dataclasses.replace(one.stage, grid=grid))
    student_plan = _plan_student(context, plain, share)
    return dataclasses.replace(student_plan, levels=levels, indices=table.indices[nearest_rows])


def _grid(context: StageContext, stage: StageSettings) -> np.ndarray:
    """`[N+1]`, indices of the levels of the stage's table that a student uses.

    Raises:
      ConfigError: as `make_grid`, with the name of the stage and of its teacher.
    """
    path, levels = context.path, context.table.levels
    g, T = stage.grid, levels.num_steps
    swept = "grid_steps" in stage.students.sweep
    begin = f"{path}.students.sweep.grid_steps: " if swept else f"{path}."
    highest = max(g.explicit) if g.explicit else g.steps
    if context.rows - 1 > T and highest > T:
        given = f"explicit={g.explicit}" if g.explicit else f"steps={g.steps}"
        raise ConfigError(
            f"{begin}grid.{given} goes beyond the {T} levels of its teacher "
            f"'{stage.teacher_stage}', which has fewer than config.schedule. Allowed: 1 to {T}; "
            f"for more, name a teacher of more levels, or give '{stage.teacher_stage}' more "
            f"(config.stages.{stage.teacher_stage}.grid)."
        )
    try:
        return make_grid(levels, g.steps or T, g.spacing, explicit=g.explicit or None)
    except ConfigError as error:  # its message begins with "grid"
        raise ConfigError(f"{begin}{error}") from None


def _check_levels(s: StudentsSettings, objective: Objective, path: str) -> None:
    """Raises `ConfigError` where students share out levels that each of them needs."""
    reason = objective.requires.all_levels
    if not reason:
        return
    if s.partition in BY_LEVEL:
        raise ConfigError(
            f"{path}.partition={s.partition!r} shares out noise levels, but {reason}. Use "
            "partition='classes'."
        )


def _check_programs(students: tuple[StudentPlan, ...], path: str) -> None:
    """Raises `ConfigError` where students of a sweep cannot share a compiled program."""
    programs = [static_part(student.objective) for student in students]
    other = next((k for k, program in enumerate(programs) if program != programs[0]), 0)
    if other:
        raise ConfigError(
            f"{path}.sweep: the objective is another program for '{students[other].label}' than "
            f"for '{students[0].label}'. Make a stage of each."
        )


def _check_sweep(stage: StageSettings, objective: Objective, path: str) -> None:
    s = stage.students
    if "grid_steps" in s.sweep and stage.grid.explicit:
        raise ConfigError(
            f"{path}.sweep.grid_steps has no effect beside grid.explicit, which lists the levels "
            "of every student. Leave one of them out."
        )
    # A flag changes the program, which all students of a sweep share.
    dynamic = objective.dynamic_hparams()
    flags = [name for name in dynamic if isinstance(getattr(objective, name), bool)]
    known = [*SWEPT, *(name for name in dynamic if name not in flags)]
    for key, values in s.sweep.items():
        if key not in known:
            raise ConfigError(
                f"{path}.sweep.{key} cannot be swept.{nearest(key, known)} "
                f"Allowed: {', '.join(known)}."
            )
        number = isinstance(values, (list, tuple)) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
        )
        if not number or len(values) != s.count:
            raise ConfigError(
                f"{path}.sweep.{key}={values!r}: {s.count} numbers are needed, one for each of "
                f"{path}.count={s.count} students."
            )
        if any(v < 0 or v != _number(objective, key, v) for v in values):
            kind = "integers" if _is_whole(objective, key) else "numbers"
            raise ConfigError(f"{path}.sweep.{key}={values!r} must be {kind} of 0 or more.")
        if key.endswith("_weight") and not all(values):
            raise ConfigError(
                f"{path}.sweep.{key}={values!r}: a term of weight 0 is left out of the program, "
                "which all students share. Use values above 0, and a stage of its own without it."
            )
