"""Students for any number of steps: MeanFlow, shortcut models; and sCM, with derivatives too."""

from typing import Any

from ddistill.errors import check_choice
from ddistill.recipes.common import Options, objective
from ddistill.settings import GridSettings, StageSettings

# Objective and hyperparameters by method, where they differ from the objective's defaults.
_TWO_TIME: dict[str, tuple[str, Options]] = {
    "meanflow": ("meanflow", {}),
    "meanflow_distilled": ("meanflow", {"velocity_from": "teacher"}),
    "shortcut": ("shortcut", {}),
    "shortcut_distilled": ("shortcut", {"velocity_from": "teacher"}),
}
_SCM: dict[str, Options] = {"scd": {}, "sct": {"velocity_from": "data"}}


def two_time(
    method: str, *, levels: int = 0, loss: Options | None = None, **stage: Any
) -> StageSettings:
    """A two-time student of the stage "teacher": one network for any number of steps.

    Args:
      method: "meanflow" or "shortcut", from data, or either with "_distilled", from the teacher's
        velocity.
      levels: N, the rows of the teacher's levels on which times are drawn; 0 for all of them.
      loss: further hyperparameters of the objective.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required. `init`
        is "teacher" by default; with "fresh" the student is trained from scratch.

    Raises:
      ConfigError: there is no such method.
    """
    check_choice("two_time: method", method, _TWO_TIME)
    name, preset = _TWO_TIME[method]
    options = {"init": "teacher", "ema": (0.999,), "samplers": {"ddim": (1, 2, 4, 8)}, **stage}
    return StageSettings(
        objective=objective(name, **{**preset, **(loss or {})}),
        teacher="teacher",
        grid=GridSettings(steps=levels),
        method=method,
        **options,
    )


def scm(method: str, *, loss: Options | None = None, **stage: Any) -> StageSettings:
    """A consistency model in continuous time on all levels of the stage "teacher".

    Args:
      method: "scd", along the teacher's path, or "sct", along that of the data.
      loss: further hyperparameters of `ddistill.objectives.scm.SCM`.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required.

    Raises:
      ConfigError: there is no such method.
    """
    check_choice("scm: method", method, _SCM)
    options = {"init": "teacher", "ema": (0.999,), "samplers": {"renoise": (1, 2)}, **stage}
    return StageSettings(
        objective=objective("scm", **{**_SCM[method], **(loss or {})}),
        teacher="teacher",
        grid=GridSettings(steps=0),
        method=method,
        **options,
    )
