"""Which student of a stage owns which levels, classes and texts, from its settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError
from ddistill.partitions import (
    ConditionPartition,
    EmbeddingPartition,
    Partition,
    ProductPartition,
    condition_partition,
    timestep_partition,
)
from ddistill.partitions.fitting import BY_CUTS, check_cuts
from ddistill.planning.checks.students import check_students
from ddistill.planning.context import StageContext
from ddistill.runtime.files import expand
from ddistill.schedules import Schedule
from ddistill.settings import StageSettings, StudentsSettings

_USUAL = dataclasses.asdict(StudentsSettings())
_TOO_MANY_RANGES = (
    "students.ranges={0}, but there are {1} noise levels to share out; allowed: 1 to {1}."
)


def plan_partition(context: StageContext, levels: Schedule) -> Partition:
    """The partition of a stage's students.

    Args:
      context: the stage, whose settings name a partition.
      levels: `[N+1]`, the students' levels.

    Raises:
      ConfigError: settings that cannot work; the message begins with "students".
    """
    stage, num_classes = context.settings, context.data.num_classes
    s = stage.students
    if s.partition == "timesteps":
        return timestep_partition(levels, s.count, s.spacing, s.boundaries)
    if s.partition == "texts" or (s.partition == "both" and context.reads_text):
        return _of_texts(context, levels)
    ranges = s.ranges if s.partition == "both" else 1
    if s.partition == "both":
        _check_both(s, levels.num_steps, num_classes)
    embeddings = _embeddings(s.embeddings) if s.embeddings else None
    classes = condition_partition(
        num_classes, s.count // ranges, s.grouping, s.groups, context.run.seed, embeddings
    )
    _check_images(classes, context.data)
    if s.partition == "classes":
        return classes
    times = timestep_partition(levels, ranges, s.spacing, s.boundaries)
    return ProductPartition(times, classes)


def _of_texts(context: StageContext, levels: Schedule) -> Partition:
    """A partition by text, alone or with ranges of levels; its cells are fitted in training."""
    s = context.settings.students
    if not context.reads_text:
        raise ConfigError(
            "students.partition='texts' shares out texts, and the network of the stage reads none. "
            "Use a teacher that reads texts, or partition='timesteps'."
        )
    idle = [key for key in ("grouping", "groups", "embeddings") if getattr(s, key) != _USUAL[key]]
    if idle:
        raise ConfigError(
            f"students.{idle[0]}={getattr(s, idle[0])!r} has no effect: the network reads texts, "
            "and no classes. Leave it out."
        )
    ranges = s.ranges if s.partition == "both" else 1
    if s.text_split in BY_CUTS:
        check_cuts(s.count // ranges)
    texts = EmbeddingPartition(s.count // ranges, s.pool)
    if s.partition == "texts":
        return texts
    if ranges > levels.num_steps:
        raise ConfigError(_TOO_MANY_RANGES.format(ranges, levels.num_steps))
    return ProductPartition(timestep_partition(levels, ranges, s.spacing, s.boundaries), texts)


def list_groups(context: StageContext) -> StageSettings:
    """The stage's settings with a list of the groups in place of a file of class embeddings.

    The file may change or be deleted, and the groups must stay. The groups are part of the stage's
    digest, and the file is not.

    Raises:
      ConfigError: there is no such file, or its embeddings are not one for each class.
    """
    stage, num_classes = context.settings, context.data.num_classes
    s = stage.students
    if s.grouping != "clustered":
        return stage
    check_students(s, f"{context.path}.students")
    each = s.count // max(1, s.ranges)
    if not 1 <= each <= num_classes:
        return stage  # `plan_partition` raises
    try:
        partition = condition_partition(
            num_classes, each, s.grouping, (), context.run.seed, _embeddings(s.embeddings)
        )
    except ConfigError as error:  # its message begins with "students"
        raise ConfigError(f"{context.path}.{error}") from None
    owned = partition.owned_classes(num_classes)
    groups = tuple(tuple(np.flatnonzero(own).tolist()) for own in owned)
    listed = dataclasses.replace(
        s, grouping=StudentsSettings.grouping, embeddings="", groups=groups
    )
    return dataclasses.replace(stage, students=listed)


def note_groups(config: dict[str, Any], stages: Mapping[str, StageSettings]) -> dict[str, Any]:
    """A plain config with a list of the groups in place of a file of class embeddings."""
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
        raise ConfigError(_TOO_MANY_RANGES.format(s.ranges, levels))
    if s.count > s.ranges * classes:
        raise ConfigError(
            f"students.count={s.count} is {s.count // s.ranges} students for each of "
            f"students.ranges={s.ranges}, but there are {classes} classes to share out; allowed: "
            f"up to {s.ranges * classes}."
        )


def _check_images(classes: ConditionPartition, data: DataFacts) -> None:
    for k, own in enumerate(classes.owned_classes(data.num_classes)):
        if not np.any(own & data.present):
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
