"""diffusers' scheduler configs and our schedules.

Of a scheduler's config only the forward process is read: betas and what the network predicts. How
it was sampled from (clipping, spacing, order) is a choice of the sampler.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddistill.errors import ConfigError, check_choice
from ddistill.schedules import Schedule, betas

# Schedulers of the variance-preserving process, whose configs hold betas.
SCHEDULERS = (
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_NAMED = {
    "linear": "linear_beta",
    "scaled_linear": "scaled_linear_beta",
    "sigmoid": "logistic_beta",
}
COSINE = "squaredcos_cap_v2"
# Our schedules by the names that a DDIMScheduler knows.
BETA_SCHEDULES = {
    "linear_beta": "linear",
    "scaled_linear_beta": "scaled_linear",
    "cosine": COSINE,
}


def read_schedule(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """`ScheduleSettings` as a dictionary, and the prediction type, from a scheduler's config.

    Args:
      config: content of scheduler_config.json.
      where: the file's name, for messages.

    Raises:
      ConfigError: a scheduler of another process, or an unknown beta schedule or prediction type.
    """
    check_choice(f"{where}: _class_name", config.get("_class_name", "DDPMScheduler"), SCHEDULERS)
    if config.get("rescale_betas_zero_snr", False):
        raise ConfigError(
            f"{where}: rescale_betas_zero_snr=True ends in pure noise (alpha = 0), where neither "
            "eps nor x0 follows from the other; it is not supported."
        )
    predicts = config.get("prediction_type", "epsilon")
    check_choice(f"{where}: prediction_type", predicts, PREDICTIONS)
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"{where}: num_train_timesteps={steps!r} must be an integer above 0.")
    return _betas(config, steps, where), PREDICTIONS[predicts]


def _betas(config: Mapping[str, Any], steps: int, where: str) -> dict[str, Any]:
    table = config.get("trained_betas")
    if table is not None:
        if not isinstance(table, (list, tuple)) or not all(map(_is_number, table)):
            raise ConfigError(f"{where}: trained_betas must be a list of numbers.")
        if len(table) != steps:
            raise ConfigError(
                f"{where}: {len(table)} trained_betas for num_train_timesteps={steps}."
            )
        return {"name": "listed_beta", "steps": steps, "options": {"betas": tuple(table)}}
    kind = config.get("beta_schedule", "linear")
    check_choice(f"{where}: beta_schedule", kind, [*_NAMED, COSINE])
    if kind == COSINE:
        return {"name": "cosine", "steps": steps, "options": {}}
    ends = {"start": config.get("beta_start", 1e-4), "end": config.get("beta_end", 0.02)}
    for end, value in ends.items():
        if not _is_number(value):
            raise ConfigError(f"{where}: beta_{end}={value!r} must be a number.")
    return {
        "name": _NAMED[kind],
        "steps": steps,
        "options": {key: float(value) for key, value in ends.items()},
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def write_scheduler(levels: Schedule, prediction: str, clip: float) -> dict[str, Any]:
    """scheduler_config.json of a `DDIMScheduler` whose every timestep is one of `levels`.

    Level i + 1 is its timestep i, so that as many inference steps as there are levels walk through
    all of them.

    Args:
      levels: `[N+1]`, variance preserving, with a clean end.
      prediction: "eps", "x0" or "v".
      clip: bound of x0 predictions; 0 for none.

    Raises:
      ConfigError: levels or a prediction type that a `DDIMScheduler` does not have.
    """
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": levels.num_steps,
        "trained_betas": [float(b) for b in expressible(levels, prediction)],
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[prediction],
        "clip_sample": clip > 0,
        "clip_sample_range": clip or 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
        "thresholding": False,
        "rescale_betas_zero_snr": False,
    }


def expressible(levels: Schedule, prediction: str) -> np.ndarray:
    """The betas `[N]` of a `DDIMScheduler` with these levels.

    Raises:
      ConfigError: it cannot have them.
    """
    allowed = list(PREDICTIONS.values())
    if prediction not in allowed:
        raise ConfigError(
            f"A DDIMScheduler knows no prediction type {prediction!r}; it has {', '.join(allowed)}."
        )
    alpha, sigma = (np.asarray(x, np.float64) for x in (levels.alpha, levels.sigma))
    if np.abs(np.square(alpha) + np.square(sigma) - 1.0).max() > 1e-5:
        raise ConfigError(
            "A DDIMScheduler has variance-preserving levels only, alpha^2 + sigma^2 = 1."
        )
    if sigma[0] > 0:
        raise ConfigError(
            f"A DDIMScheduler ends at a clean image; these levels end at sigma = {sigma[0]:.3g}."
        )
    beta = betas(levels)
    # diffusers multiplies 1 - beta up in float32, where a beta close to 1 has no digits left.
    theirs = np.sqrt(np.cumprod(np.float32(1.0) - beta.astype(np.float32), dtype=np.float32))
    off = np.abs(theirs / alpha[1:] - 1.0).max()
    if off > 1e-3:
        raise ConfigError(
            f"A DDIMScheduler, which keeps betas in float32, would have these levels {off:.1%} off."
        )
    return beta
