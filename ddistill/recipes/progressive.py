"""Chains of halvings: PD (arXiv 2202.00512) and CFD/RCFD (arXiv 2211.12039)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddistill.errors import ConfigError
from ddistill.recipes.common import objective
from ddistill.settings import GridSettings, OptimizerSettings, StageSettings

# Released settings of the feature distance. The published names differ: the released flag `alpha`
# is the paper's and our beta, the flag `beta` its gamma.
CFD_DENSENET201 = {"classifier_weight": 1.0, "pixel_weight": 0.0, "tau": 0.9, "beta": 0.0}
RCFD_RESNET18 = {
    "classifier_weight": 1.0,
    "pixel_weight": 0.0,
    "tau": 0.95,
    "beta": 0.003,
    "gamma": 0.75,
}


def halvings(start: int, end: int) -> list[int]:
    """start / 2, start / 4, ..., end.

    Raises:
      ConfigError: `start` is not `end` times a power of two, at least two.
    """
    counts = []
    levels = start
    while levels % 2 == 0 and levels > max(1, end):
        levels //= 2
        counts.append(levels)
    if not counts or counts[-1] != end:
        reached = f"reaches {', '.join(map(str, counts))}" if counts else "cannot be halved"
        raise ConfigError(
            f"progressive(start={start}, end={end}): {start} {reached}, never {end}. start has to "
            "be end times a power of two, for example start=1024, end=1."
        )
    return counts


def progressive(
    start: int,
    end: int,
    *,
    steps: int,
    batch_size: int,
    optimizer: OptimizerSettings,
    steps_last: int = 0,
    method: str = "pd",
    teacher: str = "teacher",
    loss: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, StageSettings]:
    """Stages that halve a teacher's steps from `start` to `end`, each the next one's teacher.

    Every student starts from its teacher's weights with a fresh optimiser and schedule, keeps no
    average, and reads its levels off the one table that the first teacher has.

    Args:
      start: steps of the first teacher, whose stage is `teacher`; its own level count is a
        multiple of it.
      end: steps of the last student.
      steps: updates of a stage.
      batch_size, optimizer: of every stage.
      steps_last: updates of the students of 2 and of 1 step; 0 for `steps`.
      method: of the rows in results.json; stages are called METHOD_nN.
      teacher: the first teacher's stage.
      loss: hyperparameters of `ddistill.objectives.progressive.Progressive`.
      **changes: further settings of every stage, such as `classifier`.

    Returns:
      Stages by name, in order.

    Raises:
      ConfigError: `start` is not `end` times a power of two.
    """
    stages: dict[str, StageSettings] = {}
    for levels in halvings(start, end):
        name = f"{method}_n{levels}"
        stage = StageSettings(
            objective=objective("progressive", **(loss or {})),
            teacher=teacher,
            init="teacher",
            grid=GridSettings(steps=levels, spacing="trailing", time="mapped"),
            steps=steps_last if steps_last and levels <= 2 else steps,
            batch_size=batch_size,
            optimizer=optimizer,
            ema=(),
            method=method,
        )
        stages[name] = dataclasses.replace(stage, **changes)
        teacher = name
    return stages


def released_optimizer(schedule: str) -> OptimizerSettings:
    """Adam at 5e-5 with global norm 1: "linear" to 0 as PD, "cosine" to 0 as CFD."""
    return OptimizerSettings(name="adam", learning_rate=5e-5, schedule=schedule, clip=1.0)
