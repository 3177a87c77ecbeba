"""Who of a stage's students answers for what, from its settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddistill.data import Dataset
from ddistill.errors import ConfigError
from ddistill.partitions import (
    ConditionPartition,
    Partition,
    ProductPartition,
    condition_partition,
    timestep_partition,
)
from ddistill.planning.checks.students import check_students
from ddistill.runtime.files import expand
from ddistill.schedules import Schedule
from ddistill.settings import StageSettings, StudentsSettings


def plan_partition(
    stage: StageSettings, levels: Schedule, dataset: Dataset, seed: int, path: str
) -> Partition:
    """The partition of a stage's students.

    Args:
      stage: its settings, with a partition.
      levels: `[N+1]`, the students' levels.
      dataset: whose classes are shared out.
      seed: the run's, of a random grouping.
      path: of the `students` settings, for messages.

    Raises:
      ConfigError: settings that cannot work.
    """
    s = stage.students
    if s.partition == "timesteps":
        return timestep_partition(levels, s.count, s.spacing, s.boundaries)
    if not stage.conditional:
        raise ConfigError(
            f"students.partition={s.partition!r} shares out classes, but the stage is not "
            f"conditional: set {path.removesuffix('students')}conditional=True and a network with "
            "num_classes, or share out noise levels (partition='timesteps')."
        )
    ranges = s.ranges if s.partition == "both" else 1
    if s.partition == "both":
        _check_both(s, levels.num_steps, dataset.num_classes)
    classes = condition_partition(
        dataset.num_classes,
        s.count // ranges,
        s.grouping,
        s.groups,
        seed,
        _embeddings(s.embeddings) if s.embeddings else None,
    )
    _check_images(classes, dataset)
    if s.partition == "classes":
        return classes
    times = timestep_partition(levels, ranges, s.spacing, s.boundaries)
    return ProductPartition(times, classes)


def list_groups(stage: StageSettings, dataset: Dataset, seed: int, path: str) -> StageSettings:
    """The stage with the groups listed that a file of embeddings leads to.

    The file may change or go away; who owns what may not. Stages are compared, and known, by their
    groups.

    Args:
      stage: its settings.
      dataset: whose classes are shared out.
      seed: the run's.
      path: of the stage, for messages.

    Raises:
      ConfigError: no such file, or embeddings that are not those of the classes.
    """
    s = stage.students
    if s.grouping != "clustered":
        return stage
    check_students(s, f"{path}.students")
    each = s.count // max(1, s.ranges)
    if not 1 <= each <= dataset.num_classes:
        return stage  # what is wrong is told where students are planned
    try:
        partition = condition_partition(
            dataset.num_classes, each, s.grouping, (), seed, _embeddings(s.embeddings)
        )
    except ConfigError as error:  # which begins with "students", not knowing the stage
        raise ConfigError(f"{path}.{error}") from None
    owned = partition.owned_classes(dataset.num_classes)
    groups = tuple(tuple(np.flatnonzero(own).tolist()) for own in owned)
    listed = dataclasses.replace(
        s, grouping=StudentsSettings.grouping, embeddings="", groups=groups
    )
    return dataclasses.replace(stage, students=listed)


def note_groups(config: dict[str, Any], stages: Mapping[str, StageSettings]) -> dict[str, Any]:
    """A plain config with the groups listed that were clustered, so that it needs no file."""
    noted = {}
    for name, stage in config["stages"].items():
        students = stage.get("students", {})
        if name in stages and students.get("grouping") == "clustered":
            s = stages[name].students
            own = {"grouping": s.grouping, "embeddings": "", "groups": s.groups}
            stage = {**stage, "students": {**students, **own}}
        noted[name] = stage
    return {**config, "stages": noted}


def _check_both(s: StudentsSettings, levels: int, classes: int) -> None:
    """Raises `ConfigError` in the terms of the settings, which the two partitions do not know."""
    if s.ranges > levels:
        raise ConfigError(
            f"students.ranges={s.ranges}, but there are {levels} noise levels to share out; "
            f"allowed: 1 to {levels}."
        )
    if s.count > s.ranges * classes:
        raise ConfigError(
            f"students.count={s.count} is {s.count // s.ranges} students for each of "
            f"students.ranges={s.ranges}, but there are {classes} classes to share out; allowed: "
            f"up to {s.ranges * classes}."
        )


def _check_images(classes: ConditionPartition, dataset: Dataset) -> None:
    present = np.bincount(np.asarray(dataset.labels), minlength=dataset.num_classes) > 0
    for k, own in enumerate(classes.owned_classes(dataset.num_classes)):
        if not np.any(own & present):
            raise ConfigError(
                f"students: the data have no image of the classes of student {k}, "
                f"{np.flatnonzero(own).tolist()}. Use fewer students or other groups."
            )


def _embeddings(path: str) -> np.ndarray:
    try:
        return np.load(expand(path), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"students.embeddings={path!r} cannot be read as a .npy file: {error}"
        ) from None
