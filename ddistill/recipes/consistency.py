"""Consistency models (arXiv 2303.01469, 2310.14189, 2310.04378, 2406.14548)."""

from typing import Any

from ddistill.errors import check_choice
from ddistill.recipes.common import Options, objective
from ddistill.settings import GridSettings, StageSettings

# Hyperparameters by method, where they differ from those of the objectives `cd` and `ct`.
_PRESETS: dict[str, tuple[str, Options]] = {
    "cd": ("cd", {}),
    "ct": ("ct", {}),
    "ict": (
        "ct",
        {
            "curriculum": "doubling",
            "distance": "pseudo_huber",
            "step_weight": "inverse_step",
            "law": "lognormal",
        },
    ),
    "ect": (
        "ct",
        {
            "curriculum": "ect",
            "distance": "pseudo_huber",
            "huber": 1e-8,
            "step_weight": "inverse_step",
            "law": "lognormal",
        },
    ),
    "lcm": (
        "cd",
        {"solver": "ddim", "distance": "pixel_huber", "huber": 1e-3, "target_ema": 0.95},
    ),
}


def consistency(
    method: str, levels: int, *, loss: Options | None = None, **stage: Any
) -> StageSettings:
    """A consistency model on `levels` levels of the stage "teacher".

    Args:
      method: "cd" (Heun steps of the teacher), "ct" (no teacher), "ict" and "ect" (ct with the
        curriculum, distance and weights of these papers), or "lcm" (cd with DDIM steps, Huber
        distances and a moving average; `loss={"level_skip": k}` sets its skip).
      levels: N, the steps of the student's grid.
      loss: further hyperparameters of `ddistill.objectives.consistency`.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required.

    Raises:
      ConfigError: there is no such method.
    """
    check_choice("consistency: method", method, _PRESETS)
    name, preset = _PRESETS[method]
    return StageSettings(
        objective=objective(name, **{**preset, **(loss or {})}),
        teacher="teacher",
        grid=GridSettings(steps=levels),
        method=method,
        **{"init": "teacher", "ema": (0.999,), "samplers": {"renoise": (1, 2)}, **stage},
    )
