"""Chains of halvings: PD (arXiv 2202.00512), CFD/RCFD (arXiv 2211.12039), RDD (2410.07679)."""

import dataclasses
from typing import Any

from ddistill.errors import ConfigError
from ddistill.recipes.common import Options, objective
from ddistill.settings import GridSettings, OptimizerSettings, StageSettings

# Released settings of the feature distance, under the paper's names: the released flag `alpha` is
# the paper's beta, and the released flag `beta` is the paper's gamma.
CFD_DENSENET201 = {"classifier_weight": 1.0, "pixel_weight": 0.0, "tau": 0.9, "beta": 0.0}
RCFD_RESNET18 = {
    "classifier_weight": 1.0,
    "pixel_weight": 0.0,
    "tau": 0.95,
    "beta": 0.003,
    "gamma": 0.75,
}
RDD_DENSENET201 = {"classifier_weight": 1.0, "pixel_weight": 0.0, "tau": 0.9}
RELEASED: dict[str, Options] = {
    "cfd": CFD_DENSENET201,
    "rcfd": RCFD_RESNET18,
    "rdd": RDD_DENSENET201,
}
# DDIL (arXiv 2410.11971) as a setting of other methods. The paper does not publish its shares and
# its buffer clearly; these are ours.
DDIL = {
    "student_states": 0.5,
    "state_warmup": 0.2,
    "replay_batches": 8,
    "replay_share": 0.5,
    "clip_x0": True,
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
    steps_last: int = 0,
    teacher: str = "teacher",
    method_objective: str = "progressive",
    loss: Options | None = None,
    **stage: Any,
) -> dict[str, StageSettings]:
    """Stages that halve a teacher's steps from `start` to `end`; each teaches the next one.

    Every student starts from its teacher's weights with a fresh optimiser and learning-rate
    schedule, keeps no average, and takes its levels from the schedule of the first teacher.

    Args:
      start: steps of the first teacher; the number of its levels is a multiple of it.
      end: steps of the last student.
      steps_last: updates of the students of 2 steps and of 1 step; 0 for `steps`.
      teacher: the stage of the first teacher.
      method_objective: "progressive" or "rdd".
      loss: hyperparameters of that objective.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required. Stages
        are called METHOD_nN after `method`, which is "pd" by default.

    Returns:
      Stages by name, in order.

    Raises:
      ConfigError: `start` is not `end` times a power of two.
    """
    shared = StageSettings(
        objective=objective(method_objective, **(loss or {})),
        init="teacher",
        **{"ema": (), "method": "pd", **stage},
    )
    stages: dict[str, StageSettings] = {}
    for levels in halvings(start, end):
        name = f"{shared.method}_n{levels}"
        stages[name] = dataclasses.replace(
            shared,
            teacher=teacher,
            grid=GridSettings(steps=levels, spacing="trailing", time="mapped"),
            steps=steps_last if steps_last and levels <= 2 else shared.steps,
        )
        teacher = name
    return stages


def feature_halvings(
    method: str,
    counts: tuple[int, int, int],
    loss: Options | None = None,
    later: Options | None = None,
    **stage: Any,
) -> dict[str, StageSettings]:
    """PD's halvings, then halvings that compare images in the features of a classifier.

    RDD's head has its released optimiser, Adam at a constant 5e-5 without clipping, unless `later`
    names another one.

    Args:
      method: "cfd", "rcfd" or "rdd"; the later stages are called METHOD_nN.
      counts: steps of the teacher, of the last PD student, and of the last student.
      loss: hyperparameters of the later stages, beside `RELEASED[method]`.
      later: fields of `StageSettings` of the later stages.
      **stage: as in `progressive`. The stage "feature_classifier" has to exist.
    """
    start, switch, end = counts
    own: Options = {"classifier": "feature_classifier", "method": method}
    if method == "rdd":
        head = {"relation_head": OptimizerSettings(name="adam", learning_rate=5e-5)}
        own = {**own, "method_objective": "rdd", "optimizers": head}
    options = {**own, **stage, **(later or {})}
    released = {**RELEASED[method], **(loss or {})}
    return {
        **progressive(start, switch, **{**stage, "shared": True}),
        **progressive(switch, end, teacher=f"pd_n{switch}", loss=released, **options),
    }


def released_optimizer(schedule: str) -> OptimizerSettings:
    """Adam at 5e-5 with global norm 1: "linear" to 0 as PD, "cosine" to 0 as CFD."""
    return OptimizerSettings(name="adam", learning_rate=5e-5, schedule=schedule, clip=1.0)
