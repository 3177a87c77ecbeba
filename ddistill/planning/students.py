"""The students of a stage: the levels, seed and rate of each, planned before anything compiles."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from ddistill.data import Dataset
from ddistill.errors import ConfigError, nearest
from ddistill.objectives import Objective, make_level_tables
from ddistill.objectives.inputs import student_levels
from ddistill.optimizers import check_optimizer
from ddistill.partitions import Partition, level_ranges
from ddistill.planning.checks.students import BY_CLASS, BY_LEVEL, check_students
from ddistill.planning.partitions import plan_partition
from ddistill.planning.plan import LevelTable, StudentPlan
from ddistill.schedules import edm_sampling, make_grid
from ddistill.settings import StageSettings, StudentsSettings

# Beside the objective's own numbers, by their names.
SWEPT = ("grid_steps", "seed", "learning_rate")


_WHOLE = ("grid_steps", "seed", "substeps")


def plan_students(
    stage: StageSettings,
    table: LevelTable,
    rows: int,
    seed: int,
    objective: Objective,
    dataset: Dataset,
    path: str,
) -> tuple[tuple[StudentPlan, ...], Partition | None]:
    """The students of a stage and who of them answers for what.

    Args:
      stage: its settings.
      table: what the stage's grid picks from.
      rows: length of the tables of a process.
      seed: the run's.
      objective: the method, not yet prepared for a grid.
      dataset: whose classes are shared out.
      path: of the `students` settings, for messages.

    Raises:
      ConfigError: settings that cannot work.
    """
    check_students(stage.students, path)
    _check_levels(stage.students, objective, path)
    swept = _swept(stage, seed, objective, path)
    whole = _Share(classes=tuple(range(dataset.num_classes)) if stage.conditional else None)
    stage_path = path.removesuffix(".students")
    if stage.grid.spacing == "edm" and objective.makes_pairs and not stage.grid.explicit:
        return (
            _plan_edm_student(swept[0], table, rows, dataset.num_classes, whole, stage_path),
        ), None
    students = tuple(
        _plan_student(one, table, rows, dataset.num_classes, whole, stage_path) for one in swept
    )
    if stage.students.partition == "none":
        return students, None
    levels = students[0].levels
    try:
        partition = plan_partition(stage, levels, dataset, seed, path)
        low, high = level_ranges(partition, levels, stage.students.margin)
    except ConfigError as error:  # which begins with "students", not knowing the stage
        raise ConfigError(f"{path.removesuffix('students')}{error}") from error
    owned = partition.owned_classes(dataset.num_classes)
    shares = [
        _Share(int(a), int(b), tuple(np.flatnonzero(own).tolist()) if stage.conditional else None)
        for a, b, own in zip(low, high, owned)
    ]
    return tuple(
        _plan_student(one, table, rows, dataset.num_classes, own, stage_path)
        for one, own in zip(swept, shares)
    ), partition


@dataclass(frozen=True)
class _Share:
    """What one student is shown: levels low .. high (0 for the last), and these classes."""

    low: int = 1
    high: int = 0
    classes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Swept:
    """One student's settings."""

    label: str
    stage: StageSettings
    seed: int
    stream: str
    objective: Objective


def _swept(stage: StageSettings, seed: int, objective: Objective, path: str) -> list[_Swept]:
    """The settings of every student; those of a partition differ in their random streams alone."""
    s = stage.students
    _check_sweep(stage, objective, path)
    swept = []
    for k in range(max(1, s.count)):
        values = {key: entries[k] for key, entries in s.sweep.items()}
        grid, optimizer = stage.grid, stage.optimizer
        if "grid_steps" in values:
            grid = dataclasses.replace(grid, steps=int(values["grid_steps"]))
        if "learning_rate" in values:
            rate = float(values["learning_rate"])
            optimizer = dataclasses.replace(optimizer, learning_rate=rate)
            check_optimizer(optimizer, stage.steps, f"{path}.sweep: optimizer")
        changes = {key: value for key, value in values.items() if key not in SWEPT}
        swept.append(
            _Swept(
                label=", ".join(f"{key}={value:g}" for key, value in values.items()),
                stage=dataclasses.replace(stage, grid=grid, optimizer=optimizer),
                seed=int(values.get("seed", seed)),
                # Students of a sweep are to differ in what is swept and in nothing else.
                stream=str(k) if k and not s.sweep else "",
                objective=objective.replace(
                    **{key: _number(key, value) for key, value in changes.items()}
                ),
            )
        )
    return swept


def _number(key: str, value: float) -> int | float:
    """A swept value, whose kind is the key's and not that of what the config happens to hold."""
    return int(value) if key in _WHOLE else float(value)


def _plan_student(
    one: _Swept, table: LevelTable, rows: int, num_classes: int, share: _Share, path: str
) -> StudentPlan:
    grid_settings, students = one.stage.grid, one.stage.students
    grid = _grid(one.stage, table, rows, path)
    try:
        objective = one.objective.prepare(grid)
    except ConfigError as error:  # which begins with "objective", not knowing the stage
        raise ConfigError(f"{path}.{error}") from None
    return StudentPlan(
        label=one.label,
        levels=student_levels(table.levels, grid, grid_settings.time),
        indices=table.indices[grid],
        tables=make_level_tables(
            table.levels,
            grid,
            grid_settings.time,
            rows,
            low=share.low,
            high=share.high,
            full_range_share=students.full_range_share or None,
            classes=share.classes,
            num_classes=num_classes,
            values=objective.numbers(),
        ),
        objective=objective,
        seed=one.seed,
        stream=one.stream,
        optimizer=one.stage.optimizer,
        classes=share.classes if students.partition in BY_CLASS else None,
    )


def _plan_edm_student(
    one: _Swept, table: LevelTable, rows: int, num_classes: int, share: _Share, path: str
) -> StudentPlan:
    """What makes pairs on EDM's own levels, which need not be rows of the table."""
    key = f"{path}.grid.spacing"
    steps = one.stage.grid.steps or table.levels.num_steps
    made = table.schedule
    levels, nearest_rows = edm_sampling(made.name, made.options, table.levels, steps, key)
    grid = dataclasses.replace(one.stage.grid, spacing="trailing", steps=1)
    plain = dataclasses.replace(one, stage=dataclasses.replace(one.stage, grid=grid))
    student_plan = _plan_student(plain, table, rows, num_classes, share, path)
    return dataclasses.replace(student_plan, levels=levels, indices=table.indices[nearest_rows])


def _grid(stage: StageSettings, table: LevelTable, rows: int, path: str) -> np.ndarray:
    """`[N+1]`, indices of the levels of `table` that a student uses.

    Raises:
      ConfigError: as `make_grid`, with the name of the stage and of what it picks from.
    """
    g, T = stage.grid, table.levels.num_steps
    swept = "grid_steps" in stage.students.sweep
    whose = f"{path}.students.sweep.grid_steps: " if swept else f"{path}."
    highest = max(g.explicit) if g.explicit else g.steps
    if rows - 1 > T and highest > T:
        asked = f"explicit={g.explicit}" if g.explicit else f"steps={g.steps}"
        raise ConfigError(
            f"{whose}grid.{asked} goes beyond the {T} levels of its teacher '{stage.teacher}', "
            f"which has fewer than config.schedule. Allowed: 1 to {T}; for more, name a teacher of "
            f"more levels, or give '{stage.teacher}' more (config.stages.{stage.teacher}.grid)."
        )
    try:
        return make_grid(table.levels, g.steps or T, g.spacing, explicit=g.explicit or None)
    except ConfigError as error:  # which begins with "grid", not knowing the stage
        raise ConfigError(f"{whose}{error}") from None


def _check_levels(s: StudentsSettings, objective: Objective, path: str) -> None:
    """Raises `ConfigError` where students share out levels that each of them has to walk."""
    if not objective.all_levels:
        return
    if s.partition in BY_LEVEL:
        raise ConfigError(
            f"{path}.partition={s.partition!r} shares out noise levels, but a student of this "
            "objective makes its images from noise by itself. Use partition='classes'."
        )
    if "grid_steps" in s.sweep:
        raise ConfigError(
            f"{path}.sweep.grid_steps: students of this objective with other numbers of steps are "
            "other programs. Make a stage of each."
        )


def _check_sweep(stage: StageSettings, objective: Objective, path: str) -> None:
    s = stage.students
    if "grid_steps" in s.sweep and stage.grid.explicit:
        raise ConfigError(
            f"{path}.sweep.grid_steps has no effect beside grid.explicit, which lists the levels "
            "of every student. Leave one of them out."
        )
    # Whether a student does something at all is no number to sweep.
    flags = [name for name in objective.numbers() if isinstance(getattr(objective, name), bool)]
    known = [*SWEPT, *(name for name in objective.numbers() if name not in flags)]
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
        if any(v < 0 or v != _number(key, v) for v in values):
            kind = "integers" if key in _WHOLE else "numbers"
            raise ConfigError(f"{path}.sweep.{key}={values!r} must be {kind} of 0 or more.")
        if key.endswith("_weight") and not all(values):
            raise ConfigError(
                f"{path}.sweep.{key}={values!r}: a term of weight 0 is left out of the program, "
                "which all students share. Use values above 0, and a stage of its own without it."
            )
