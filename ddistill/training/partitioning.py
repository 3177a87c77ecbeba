"""Who of a stage's students answers for what, from its settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddistill.data import Dataset
from ddistill.errors import ConfigError, check_choice
from ddistill.mapping import MAPPINGS
from ddistill.objectives import Objective
from ddistill.partitions import (
    CLASS_GROUPINGS,
    ConditionPartition,
    Partition,
    ProductPartition,
    condition_partition,
    timestep_partition,
)
from ddistill.runtime.files import expand
from ddistill.schedules import Schedule
from ddistill.settings import StageSettings, StudentsSettings

if TYPE_CHECKING:
    from ddistill.training.members import Member
    from ddistill.training.stages import StagePlan

PARTITIONS = ("none", "timesteps", "classes", "both")
BY_LEVEL, BY_CLASS = ("timesteps", "both"), ("classes", "both")
ON_DIVERGENCE = ("stop", "freeze")
# Settings that mean nothing without a partition of one of these kinds.
_NEED = {
    "spacing": BY_LEVEL,
    "boundaries": BY_LEVEL,
    "margin": BY_LEVEL,
    "outside": BY_LEVEL,
    "grouping": BY_CLASS,
    "groups": BY_CLASS,
    "embeddings": BY_CLASS,
    "ranges": ("both",),
}


def check_students(s: StudentsSettings, path: str) -> None:
    """Raises `ConfigError` for values that depend on neither the levels nor the data."""
    check_choice(f"{path}.partition", s.partition, PARTITIONS)
    check_choice(f"{path}.mapping", s.mapping, MAPPINGS)
    check_choice(f"{path}.on_divergence", s.on_divergence, ON_DIVERGENCE)
    check_choice(f"{path}.grouping", s.grouping, CLASS_GROUPINGS)
    for key in ("count", "margin", "ranges"):
        if getattr(s, key) < 0:
            none = " (no student axis)" if key == "count" else ""
            raise ConfigError(f"{path}.{key}={getattr(s, key)} must be 0{none} or more.")
    if not 0.0 <= s.outside <= 1.0:
        raise ConfigError(f"{path}.outside={s.outside} is a share; allowed: 0 to 1.")
    _check_idle(s, path)
    if bool(s.embeddings) != (s.grouping == "clustered"):
        raise ConfigError(
            f"{path}.grouping={s.grouping!r} with {path}.embeddings={s.embeddings!r}: a .npy file "
            "of class embeddings goes with grouping='clustered', and with no other."
        )
    if s.partition == "none":
        if s.count > 1 and not s.sweep:
            raise ConfigError(
                f"{path}.count={s.count}, but nothing tells the students apart: set "
                f"{path}.partition to one of {', '.join(PARTITIONS[1:])}, or list their "
                f"differences in {path}.sweep."
            )
        return
    if s.count < 1:
        raise ConfigError(f"{path}.partition={s.partition!r} needs {path}.count of 1 or more.")
    if s.sweep:
        raise ConfigError(
            f"{path}.sweep and {path}.partition={s.partition!r} exclude each other: students of a "
            "partition are one sampler, those of a sweep are samplers of their own."
        )
    if s.partition == "both" and (s.ranges < 1 or s.count % s.ranges):
        raise ConfigError(
            f"{path}.ranges={s.ranges} ranges of levels do not share out {path}.count={s.count} "
            "students: set ranges to a divisor of count."
        )


def _check_idle(s: StudentsSettings, path: str) -> None:
    """Raises `ConfigError` for settings that would be without effect."""
    usual = StudentsSettings()

    def is_set(key: str) -> bool:
        return getattr(s, key) != getattr(usual, key)

    for key, kinds in _NEED.items():
        if is_set(key) and s.partition not in kinds:
            wanted = " or ".join(f"'{kind}'" for kind in kinds)
            raise ConfigError(
                f"{path}.{key}={getattr(s, key)!r} has no effect without {path}.partition={wanted}."
            )
    for key, instead in (("spacing", "boundaries"), ("grouping", "groups")):
        if is_set(key) and is_set(instead):
            raise ConfigError(
                f"{path}.{key}={getattr(s, key)!r} has no effect beside {path}.{instead}, which "
                "lists them explicitly. Leave one of them out."
            )
    if is_set("on_divergence") and not s.count:
        raise ConfigError(
            f"{path}.on_divergence={s.on_divergence!r} has no effect without students: set "
            f"{path}.count."
        )


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


def check_every_class(
    objective: Objective, members: "Sequence[Member]", dataset: Dataset, path: str
) -> None:
    """Raises `ConfigError` where students are asked for classes that the data have no images of.

    Args:
      objective: the method, which says whether it minds.
      members: the students.
      dataset: the data.
      path: of the stage.
    """
    if not objective.needs_every_class:
        return
    present = np.bincount(np.asarray(dataset.labels), minlength=dataset.num_classes) > 0
    for k, member in enumerate(members):
        asked = () if member.process.classes is None else np.unique(member.process.classes)
        missing = [int(c) for c in asked if not present[c]]
        if missing:
            raise ConfigError(
                f"{path}: student {k} would be asked for images of class {in_words(missing)}, of "
                "which the data have none, and a discriminator would know them by their label "
                "alone. Add images, or leave the discriminator out (objective.gan_weight=0)."
            )


def _embeddings(path: str) -> np.ndarray:
    try:
        return np.load(expand(path), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"students.embeddings={path!r} cannot be read as a .npy file: {error}"
        ) from None


def check_same_shares(
    stage: StageSettings,
    levels: Schedule,
    partition: Partition | None,
    classes: int,
    path: str,
    earlier: "Mapping[str, StagePlan]",
) -> None:
    """Raises `ConfigError` where student k would start from one that has learnt another part.

    Args:
      stage: the new one.
      levels: `[N+1]`, its students'.
      partition: who of them answers for what; None where nobody shares anything out.
      classes: how many the data have.
      path: of the stage.
      earlier: plans of the stages before it.
    """
    source = earlier.get(stage.init_source)
    if source is None or not source.settings.students.count:
        return
    key = f"{path}.{'resume' if stage.resume else 'init'}"
    begin = f"{key} takes the weights of the students of '{source.name}', who answer for other "
    advice = "Share out alike, or start from a stage of one student."
    if (partition is None) != (source.partition is None):
        kinds = [s.students.partition for s in (stage, source.settings)]
        raise ConfigError(
            f"{begin}parts: students.partition is {kinds[0]!r} here and {kinds[1]!r} there. "
            f"{advice}"
        )
    if partition is None or source.partition is None:
        return
    for what, first, here, there in (
        ("levels", 1, partition.owned_levels(levels), source.partition.owned_levels(levels)),
        (
            "classes",
            0,
            partition.owned_classes(classes),
            source.partition.owned_classes(classes),
        ),
    ):
        differs = np.any(here != there, axis=1)
        if differs.any():
            k = int(np.argmax(differs))
            own = [np.flatnonzero(shares[k]) + first for shares in (here, there)]
            ours, theirs = (in_words(numbers.tolist()) or "none" for numbers in own)
            raise ConfigError(
                f"{begin}{what}: student {k} for {ours} here, and for {theirs} of these there. "
                f"{advice}"
            )


def in_words(numbers: Sequence[int]) -> str:
    """Increasing numbers in words: "0 to 4, 7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a} to {b}" if b > a else f"{a}" for a, b in found)
