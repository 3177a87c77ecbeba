"""Checks of the students of a stage: their counts, partitions and shares."""

from collections.abc import Sequence

import numpy as np

from ddistill.errors import ConfigError, check_choice, in_words
from ddistill.mapping import MAPPINGS
from ddistill.networks.text_encoding import POOLS
from ddistill.objectives import Objective
from ddistill.partitions import CLASS_GROUPINGS, TEXT_SPLITS, Partition, text_part
from ddistill.planning.context import StageContext
from ddistill.planning.plan import StudentPlan
from ddistill.settings import StudentsSettings

PARTITIONS = ("none", "timesteps", "classes", "texts", "both")
BY_LEVEL, BY_CLASS, BY_TEXT = ("timesteps", "both"), ("classes", "both"), ("texts", "both")
ON_DIVERGENCE = ("stop", "freeze")
# Settings without effect unless the partition is one of these kinds.
_NEED = {
    "spacing": BY_LEVEL,
    "boundaries": BY_LEVEL,
    "margin": BY_LEVEL,
    "full_range_share": BY_LEVEL,
    "grouping": BY_CLASS,
    "groups": BY_CLASS,
    "embeddings": BY_CLASS,
    "text_split": BY_TEXT,
    "column": BY_TEXT,
    "pool": BY_TEXT,
    "ranges": ("both",),
}


def check_students(s: StudentsSettings, path: str) -> None:
    """Raises `ConfigError` for values that depend on neither the levels nor the data."""
    check_choice(f"{path}.partition", s.partition, PARTITIONS)
    check_choice(f"{path}.mapping", s.mapping, MAPPINGS)
    check_choice(f"{path}.on_divergence", s.on_divergence, ON_DIVERGENCE)
    check_choice(f"{path}.grouping", s.grouping, CLASS_GROUPINGS)
    check_choice(f"{path}.text_split", s.text_split, TEXT_SPLITS)
    check_choice(f"{path}.pool", s.pool, POOLS)
    if bool(s.column) != (s.text_split == "listed"):
        raise ConfigError(
            f"{path}.text_split={s.text_split!r} with {path}.column={s.column!r}: a column of the "
            "data goes with text_split='listed', and with no other."
        )
    for key in ("count", "margin", "ranges"):
        if getattr(s, key) < 0:
            none = " (no student axis)" if key == "count" else ""
            raise ConfigError(f"{path}.{key}={getattr(s, key)} must be 0{none} or more.")
    if not 0.0 <= s.full_range_share <= 1.0:
        raise ConfigError(
            f"{path}.full_range_share={s.full_range_share} is a share; allowed: 0 to 1."
        )
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
            "partition are one sampler, students of a sweep are one sampler each."
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


def check_conditional(context: StageContext) -> None:
    """Raises `ConfigError` where students share out classes of a stage that is given none."""
    partition = context.settings.students.partition
    if partition in BY_CLASS and not context.settings.conditional:
        raise ConfigError(
            f"{context.path}.students.partition={partition!r} shares out classes, but the stage is "
            f"not conditional: set {context.path}.conditional=True and a network with num_classes, "
            "or share out noise levels (partition='timesteps')."
        )


def check_every_class(
    context: StageContext, objective: Objective, students: Sequence[StudentPlan]
) -> None:
    """Raises `ConfigError` where students generate classes without images in the data.

    Args:
      context: the stage.
      objective: its method, which says whether every class needs images.
      students: its students.
    """
    reason = objective.requires.every_class
    if not reason:
        return
    path, present = context.path, context.data.present
    for k, student_plan in enumerate(students):
        known = student_plan.tables.classes
        missing = [int(c) for c in (() if known is None else np.unique(known)) if not present[c]]
        if missing:
            raise ConfigError(
                f"{path}: student {k} would generate images of class {in_words(missing)}, of which "
                f"the data have none, and {reason}. Add images of the class."
            )


def check_same_shares(
    context: StageContext, students: Sequence[StudentPlan], partition: Partition | None
) -> None:
    """Raises `ConfigError` where student k would start from one that has learnt another part.

    Args:
      context: the stage.
      students: its students.
      partition: which of them owns which levels and classes, or None.
    """
    stage, source = context.settings, context.source
    if source is None or not source.settings.students.count:
        return
    levels, classes = students[0].levels, context.data.num_classes
    key = f"{context.path}.{'resume' if stage.resume else 'init'}"
    begin = f"{key} takes the weights of the students of '{source.name}', which own other "
    advice = "Share out alike, or start from a stage of one student."
    if (partition is None) != (source.partition is None):
        kinds = [s.students.partition for s in (stage, source.settings)]
        raise ConfigError(
            f"{begin}parts: students.partition is {kinds[0]!r} here and {kinds[1]!r} there. "
            f"{advice}"
        )
    if partition is None or source.partition is None:
        return
    ours, theirs = (
        text_settings(p, s)
        for p, s in ((partition, stage.students), (source.partition, source.settings.students))
    )
    if ours != theirs:
        raise ConfigError(f"{begin}texts: {theirs} there and {ours} here. {advice}")
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
            mine, other = (in_words(numbers.tolist()) or "none" for numbers in own)
            raise ConfigError(
                f"{begin}{what}: student {k} for {mine} here, and for {other} of these there. "
                f"{advice}"
            )


def text_settings(partition: Partition, s: StudentsSettings) -> str:
    """The settings on which the cells of texts depend; "" for students of all texts."""
    texts = text_part(partition)
    if texts is None:
        return ""
    column = f", column={s.column!r}" if s.column else ""
    return f"{texts.count} students, text_split={s.text_split!r}, pool={s.pool!r}{column}"
