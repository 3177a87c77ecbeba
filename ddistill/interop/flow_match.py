"""diffusers' schedulers of flow matching and our schedule "linear_path".

    FlowMatchEulerDiscreteScheduler: sigma = s u / (1 + (s - 1) u), timestep 1000 sigma

These are `linear_path`'s levels with its option `shift`, and their times; the output of the network
is eps - x0, prediction "flow". Options of sampling (Karras' or other spacings, noise in the steps,
an end above 0) are ignored, as for other schedulers.
"""

import math

import numpy as np

from ddistill.errors import ConfigError
from ddistill.interop.config_values import is_number
from ddistill.interop.scheduler_keys import check_flags, check_keys
from ddistill.schedules import Schedule, linear_path
from ddistill.typing import JsonRecord, Options

# Classes with these levels. Others, such as FlowMatchLCMScheduler, add options to them.
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
TIMESTEPS = 1000
# Keys of the levels. All of them are read.
FLOW_KEYS = frozenset(("num_train_timesteps", "shift", "use_dynamic_shifting", "invert_sigmas"))
# Keys of sampling, or without effect where the shift is not dynamic.
FLOW_SAMPLER_KEYS = frozenset(
    (
        *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
        *("shift_terminal", "time_shift_type", "stochastic_sampling"),
        *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    )
)


def read_flow_schedule(config: JsonRecord, where: str) -> Options:
    """`ScheduleSettings` as a dictionary from the config of a scheduler of flow matching.

    Args:
      config: content of scheduler_config.json.
      where: the file's name, for messages.

    Raises:
      ConfigError: an unknown key, a value of the wrong type, or levels that are not those of
        `linear_path`.
    """
    check_keys(config, FLOW_KEYS | FLOW_SAMPLER_KEYS, "a scheduler of flow matching", where)
    check_flags(config, ("use_dynamic_shifting", "invert_sigmas"), where)
    if config.get("use_dynamic_shifting", False):
        raise ConfigError(
            f"{where}: use_dynamic_shifting=True chooses the levels by the size of the image. Set "
            "it to false, and shift to the value for your images: exp(mu) of the pipeline's "
            "calculate_shift, or mu itself where time_shift_type is linear."
        )
    if config.get("invert_sigmas", False):
        raise ConfigError(
            f"{where}: invert_sigmas=True is of networks with time 0 at pure noise, which are not "
            "supported. Allowed: false."
        )
    steps, shift = config.get("num_train_timesteps", TIMESTEPS), config.get("shift", 1.0)
    if steps != TIMESTEPS or isinstance(steps, bool):
        raise ConfigError(
            f"{where}: num_train_timesteps={steps!r} is not supported: the times of the network "
            f"would be other multiples of sigma than in 'linear_path'. Allowed: {TIMESTEPS}."
        )
    if not is_number(shift) or not 0 < shift < math.inf:
        raise ConfigError(f"{where}: shift={shift!r} must be a number above 0.")
    return {"name": "linear_path", "steps": TIMESTEPS, "options": {"shift": float(shift)}}


def write_flow_scheduler(levels: Schedule) -> tuple[JsonRecord, list[float] | None]:
    """A scheduler of diffusers that walks through some levels, and what it has to be told.

    Args:
      levels: `[N+1]` of the straight path, alpha = 1 - sigma, from 0 to 1, with times 1000 sigma.

    Returns:
      scheduler_config.json of a `FlowMatchEulerDiscreteScheduler`, and the argument `sigmas` of its
      `set_timesteps`, `[N]`. Without the argument it takes other levels: its last step begins at
      the least sigma of training.

    Raises:
      ConfigError: other levels or times.
    """
    alpha, sigma, time = (
        np.asarray(x, np.float64) for x in (levels.alpha, levels.sigma, levels.time)
    )
    if np.abs(alpha + sigma - 1.0).max() > 1e-5 or sigma[0] != 0 or sigma[-1] != 1:
        raise ConfigError(
            "A FlowMatchEulerDiscreteScheduler has the levels of the straight path alone, "
            "alpha = 1 - sigma from 0 to 1."
        )
    if np.abs(time - TIMESTEPS * sigma)[1:].max() > 1e-2:
        raise ConfigError(
            f"A FlowMatchEulerDiscreteScheduler tells the network {TIMESTEPS} sigma as the time; "
            "these levels have other times."
        )
    steps = levels.num_steps
    shift = _shift_of(sigma)
    even = np.arange(steps, 0, -1) / steps
    if shift is not None:
        return _config(shift), [float(u) for u in even]
    return _config(1.0), [float(s) for s in sigma[:0:-1]]


def _shift_of(sigma: np.ndarray) -> float | None:
    """The option `shift` with which `linear_path` has these levels; None for none."""
    steps = len(sigma) - 1
    if steps == 1:
        return 1.0
    u, s = 1 / steps, sigma[1]
    shift = float(s * (1 - u) / (u * (1 - s)))
    made = np.asarray(linear_path(steps, shift, np.float64).sigma)
    return shift if np.abs(made - sigma).max() < 1e-6 else None


def _config(shift: float) -> JsonRecord:
    return {
        "_class_name": FLOW_SCHEDULERS[0],
        "num_train_timesteps": TIMESTEPS,
        "shift": shift,
        "use_dynamic_shifting": False,
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "stochastic_sampling": False,
    }
