"""Schedules by name, for settings."""

import inspect
from collections.abc import Callable

import numpy as np

from ddistill.errors import ConfigError, check_choice, nearest
from ddistill.schedules.constructors import (
    check_distinct,
    cosine,
    cosine_log_snr,
    karras,
    linear_beta,
    linear_path,
    listed_beta,
    logistic_beta,
    scaled_linear_beta,
    sigmoid_beta,
)
from ddistill.schedules.ending import check_ends_in_noise
from ddistill.schedules.levels import Schedule

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": cosine,
    "cosine_log_snr": cosine_log_snr,
    "linear_beta": linear_beta,
    "scaled_linear_beta": scaled_linear_beta,
    "logistic_beta": logistic_beta,
    "listed_beta": listed_beta,
    "sigmoid_beta": sigmoid_beta,
    "karras": karras,
    "linear_path": linear_path,
}


def make_schedule(name: str, T: int, **options: object) -> Schedule:
    """A schedule by its constructor's name, which ends in noise.

    Args:
      name: one of `SCHEDULES`.
      T: number of steps.
      **options: the constructor's own, as in its signature.

    Raises:
      ConfigError: an unknown name or option, a value that cannot work, or a last level above
        `ddistill.schedules.ending.NOISE`; the message names values that end in noise.
    """
    schedule = build_schedule(name, T, **options)
    check_ends_in_noise(
        schedule, lambda **changes: build_schedule(name, T, **changes), name, options
    )
    return schedule


def build_schedule(name: str, T: int, **options: object) -> Schedule:
    """The same for a network that is trained already, on levels that end wherever they do.

    Raises:
      ConfigError: an unknown name or option, or a value that cannot work.
    """
    check_choice("schedule.name", name, SCHEDULES)
    parameters = inspect.signature(SCHEDULES[name]).parameters
    known = {key: p for key, p in parameters.items() if key not in ("T", "dtype")}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(
                f"schedule.options.{option} is not an option of '{name}'."
                f"{nearest(option, known)} Allowed: {', '.join(known)}."
            )
        _check_option(f"schedule.options.{option}", value, known[option].default)
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ConfigError(
                f"schedule.options.{option} is missing; '{name}' has no default of it."
            )
    schedule = SCHEDULES[name](T, **options)
    check_distinct(schedule, name)
    return schedule


def _check_option(path: str, value: object, default: object) -> None:
    """Raises `ConfigError` for a value of another type than an option's default."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if isinstance(default, bool):
        wanted, fits = "True or False", isinstance(value, (bool, np.bool_))
    elif isinstance(default, (int, float)):
        wanted, fits = "a number", real
    else:
        wanted, fits = "a list of numbers", _is_list_of_numbers(value)
    if not fits:
        raise ConfigError(f"{path}={value!r} is a {type(value).__name__}; {wanted} is needed.")


def _is_list_of_numbers(value: object) -> bool:
    try:
        return np.asarray(value, np.float64).ndim == 1 and not isinstance(value, str)
    except (TypeError, ValueError):
        return False
