"""diffusers' scheduler configs and our schedules.

Only the forward process of a scheduler's config is read: betas and the prediction type, or the
levels of flow matching (`flow_match`). Options of sampling (clipping, spacing, order) are ignored,
and other keys (`scheduler_keys`) raise an error.
"""

from typing import TypeVar

import numpy as np

from ddistill.errors import ConfigError, check_choice
from ddistill.interop.config_values import is_number, is_whole
from ddistill.interop.flow_match import FLOW_SCHEDULERS, read_flow_schedule
from ddistill.interop.scheduler_keys import (
    FIXED_VARIANCES,
    OTHERS,
    PREDICTION_TYPE,
    PROCESS_KEYS,
    SAMPLER_KEYS,
    SCHEDULERS,
    TIMESTEPS,
    check_flags,
    check_keys,
)
from ddistill.schedules import Schedule, betas
from ddistill.typing import JsonRecord, Options

T = TypeVar("T")

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_NAMED = {
    "linear": "linear_beta",
    "scaled_linear": "scaled_linear_beta",
    "sigmoid": "logistic_beta",
}
COSINE = "squaredcos_cap_v2"
# Our schedules and their names in a DDIMScheduler.
BETA_SCHEDULES = {
    "linear_beta": "linear",
    "scaled_linear_beta": "scaled_linear",
    "cosine": COSINE,
}


def read_schedule(config: JsonRecord, where: str) -> tuple[Options, str]:
    """`ScheduleSettings` as a dictionary, and the prediction type, from a scheduler's config.

    Where the config is silent, the defaults of its class hold. Keys that begin with "_" are
    diffusers' own notes.

    Args:
      config: content of scheduler_config.json.
      where: the file's name, for messages.

    Raises:
      ConfigError: a scheduler of another process, an unknown key, an unknown beta schedule or
        prediction type, a value of the wrong type, or a missing key without a known default.
    """
    if config.get("_class_name") in FLOW_SCHEDULERS:
        return read_flow_schedule(config, where), "flow"
    _check_class(config, where)
    _check_process(config, where)
    predicts = _prediction(config, where)
    if config.get("rescale_betas_zero_snr", False) and predicts == "epsilon":
        raise ConfigError(
            f"{where}: rescale_betas_zero_snr=True ends in pure noise (alpha = 0), where x0 does "
            "not follow from eps. Allowed with it: prediction_type v_prediction, sample."
        )
    steps = config.get("num_train_timesteps", TIMESTEPS)
    if not is_whole(steps):
        raise ConfigError(f"{where}: num_train_timesteps={steps!r} must be an integer above 0.")
    return _betas(config, steps, where), PREDICTIONS[predicts]


def _check_class(config: JsonRecord, where: str) -> None:
    name = config.get("_class_name", "DDPMScheduler")
    if (process := OTHERS.get(str(name))) is not None:
        raise ConfigError(
            f"{where}: _class_name={name!r} is not known here: it is for {process}. Allowed: "
            f"{', '.join((*SCHEDULERS, *FLOW_SCHEDULERS))}."
        )
    check_choice(f"{where}: _class_name", name, (*SCHEDULERS, *FLOW_SCHEDULERS))
    check_keys(config, PROCESS_KEYS | SAMPLER_KEYS, "a scheduler", where)


def _check_process(config: JsonRecord, where: str) -> None:
    """Raises `ConfigError` for options of another process or another network."""
    check_flags(config, ("rescale_betas_zero_snr", "use_flow_sigmas", "predict_epsilon"), where)
    if config.get("use_flow_sigmas", False):
        raise ConfigError(
            f"{where}: use_flow_sigmas=True is flow matching, whose levels are not variance "
            "preserving; it is not supported."
        )
    variance = config.get("variance_type")
    if variance not in FIXED_VARIANCES:
        learned = " The network also predicts a variance." if "learned" in str(variance) else ""
        raise ConfigError(
            f"{where}: variance_type={variance!r} is not supported.{learned} Allowed: "
            f"{', '.join(map(str, FIXED_VARIANCES))}."
        )
    if (kind := config.get("timestep_type", "discrete")) != "discrete":
        raise ConfigError(
            f"{where}: timestep_type={kind!r} is not supported: the network is told something else "
            "than the number of the level. Allowed: discrete."
        )


def _prediction(config: JsonRecord, where: str) -> str:
    """diffusers' name of the prediction type; before 0.9 `predict_epsilon` said it."""
    old = config.get("predict_epsilon")
    silent = "sample" if old is False else PREDICTION_TYPE
    predicts = config.get("prediction_type", silent)
    check_choice(f"{where}: prediction_type", predicts, PREDICTIONS)
    if old is not None and predicts != ("epsilon" if old else "sample"):
        raise ConfigError(
            f"{where}: predict_epsilon={old} and prediction_type={predicts!r} contradict each "
            "other. Remove the one that is not true."
        )
    return predicts


def _betas(config: JsonRecord, steps: int, where: str) -> Options:
    table = config.get("trained_betas")
    if table is not None:
        if not isinstance(table, (list, tuple)) or not all(map(is_number, table)):
            raise ConfigError(f"{where}: trained_betas must be a list of numbers.")
        if len(table) != steps:
            raise ConfigError(
                f"{where}: {len(table)} trained_betas for num_train_timesteps={steps}."
            )
        for i, value in enumerate(table):
            _check_beta(f"trained_betas[{i}]", value, where)
        listed = {"betas": tuple(table), **_rescaled(config)}
        return {"name": "listed_beta", "steps": steps, "options": listed}
    for key in ("beta_start", "beta_end"):
        if key in config:
            _check_beta(key, config[key], where)
    silent = SCHEDULERS[config.get("_class_name", "DDPMScheduler")]
    kind = _or_default(config, "beta_schedule", silent.beta_schedule, where)
    check_choice(f"{where}: beta_schedule", kind, [*_NAMED, COSINE])
    if kind == COSINE:
        return {"name": "cosine", "steps": steps, "options": _rescaled(config)}
    start = _or_default(config, "beta_start", silent.beta_start, where)
    end = _or_default(config, "beta_end", silent.beta_end, where)
    return {
        "name": _NAMED[kind],
        "steps": steps,
        "options": {"start": float(start), "end": float(end), **_rescaled(config)},
    }


def _rescaled(config: JsonRecord) -> Options:
    return {"zero_snr": True} if config.get("rescale_betas_zero_snr", False) else {}


def _or_default(config: JsonRecord, key: str, default: T, where: str) -> T:
    if key not in config and "_class_name" not in config:
        raise ConfigError(
            f"{where}: {key} is missing, and _class_name too; the default of {key} is not the same "
            "in all schedulers. Write one of the two into the file."
        )
    return config.get(key, default)


def _check_beta(key: str, value: object, where: str) -> None:
    if not is_number(value):
        raise ConfigError(f"{where}: {key}={value!r} must be a number.")
    if not 0 < value < 1:
        raise ConfigError(f"{where}: {key}={value!r} must be above 0 and below 1.")


def write_scheduler(levels: Schedule, prediction: str, clip: float) -> JsonRecord:
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


def named_betas(name: str, options: Options) -> JsonRecord:
    """The keys of a scheduler's config for one of our schedules that diffusers has under a name.

    Args:
      name, options: as of `ddistill.settings.ScheduleSettings`.

    Returns:
      The name in place of the betas; empty for schedules without a name.
    """
    needed = set() if name == "cosine" else {"start", "end"}
    if name not in BETA_SCHEDULES or set(options) != needed:
        return {}
    ends = {f"beta_{end}": value for end, value in options.items()}
    return {"beta_schedule": BETA_SCHEDULES[name], "trained_betas": None, **ends}


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
    if alpha[-1] == 0:
        raise ConfigError(
            "A DDIMScheduler with trained_betas needs betas below 1; these levels end in pure "
            "noise (alpha = 0)."
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
