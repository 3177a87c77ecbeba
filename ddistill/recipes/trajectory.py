"""Students of the teacher's path: SFD (arXiv 2409.19681), BOOT (2306.05544), PID (2411.08378)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ddistill.errors import check_choice
from ddistill.recipes.common import Options, objective
from ddistill.settings import GridSettings, StageSettings

_FROM_NOISE = ("boot", "pid")


def sfd(levels: int, *, loss: Options | None = None, **stage: Any) -> StageSettings:
    """An SFD student of `levels` steps of the stage "teacher"; one train step is `levels` updates.

    Args:
      levels: N.
      loss: hyperparameters of `ddistill.objectives.sfd.SFD`.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required.
    """
    return StageSettings(
        objective=objective("sfd", **(loss or {})),
        teacher="teacher",
        grid=GridSettings(steps=levels),
        method="sfd",
        **{"init": "teacher", "ema": (0.99,), **stage},
    )


def sfd_v(counts: Sequence[int], *, loss: Options | None = None, **stage: Any) -> StageSettings:
    """SFD-v: one student of the stage "teacher" for several numbers of steps.

    Args:
      counts: the numbers of steps; the student is sampled with each of them.
      loss: further hyperparameters of `ddistill.objectives.sfd.SFD`.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required.
    """
    hyper = {**(loss or {}), "step_counts": tuple(counts)}
    sampler = "ddim_afs" if hyper.get("analytic_first") else "ddim"
    options = {"method": "sfd_v", "samplers": {sampler: tuple(sorted(counts))}, **stage}
    return dataclasses.replace(sfd(0, loss=hyper, **stage), **options)


def from_noise(
    method: str, levels: int, *, loss: Options | None = None, **stage: Any
) -> StageSettings:
    """A one-step student that learns the teacher's path on `levels` levels without images.

    Args:
      method: "boot" or "pid".
      levels: N, the levels of the path.
      loss: hyperparameters of the objective.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required.

    Raises:
      ConfigError: there is no such method.
    """
    check_choice("from_noise: method", method, _FROM_NOISE)
    return StageSettings(
        objective=objective(method, **(loss or {})),
        teacher="teacher",
        grid=GridSettings(steps=levels),
        method=method,
        **{"init": "teacher", "ema": (0.999,), **stage},
    )
