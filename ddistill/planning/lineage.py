"""The stages between a teacher and a student, and what they cost together."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ddistill.planning.manifests import Manifest, TrainedManifest
from ddistill.planning.plan import StagePlan, complete_manifest


@dataclass(frozen=True)
class Cost:
    """What distillation took.

    Attributes:
      teacher_calls: teacher forward passes of one image each.
      updates: optimiser steps of students.
      seconds: wall time of training, compilation left out.
    """

    teacher_calls: int
    updates: int
    seconds: float


def distillation(plan: StagePlan, root: str, plans: Sequence[StagePlan]) -> list[StagePlan]:
    """The stages from the teacher `root`, left out, to `plan`, in the order of `plans`.

    A stage belongs to them if `plan` learns from it or starts from its weights, directly or not.
    The list is empty where `plan` does not come from `root`, and for `root` itself.
    """
    by_name = {p.name: p for p in plans}
    found: set[str] = set()
    reaches_root = False
    open_names = [plan.name]
    while open_names:
        name = open_names.pop()
        if name == root:
            reaches_root = True
        elif name and name not in found:
            found.add(name)
            settings = by_name[name].settings
            open_names += [settings.teacher_stage, settings.pairs, settings.init_source]
    return [p for p in plans if p.name in found] if reaches_root and plan.name != root else []


def cost(stages: Sequence[StagePlan], student: int | None = None) -> Cost:
    """The sum over stages.

    Args:
      stages: in order.
      student: a student of a sweep, which is the last stage: it is charged with its own calls and
        updates and an equal share of the time. None for all students.

    Raises:
      CheckpointError: a stage is not complete.
    """
    manifests: list[Manifest] = [complete_manifest(plan) for plan in stages]
    if student is not None and isinstance(last := manifests[-1], TrainedManifest):
        manifests[-1] = dataclasses.replace(
            last,
            teacher_calls=last.teacher_calls_of_each[student],
            train_seconds=last.train_seconds / last.students,
            students=1,
        )
    return Cost(
        teacher_calls=sum(m.teacher_calls for m in manifests),
        updates=sum(m.updates * m.students for m in manifests),
        seconds=sum(m.train_seconds for m in manifests),
    )
