"""Errors that say what was given, what is allowed and what to do."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting that cannot work; raised before anything is compiled."""


class DataError(ValueError):
    """Data that are missing, unreadable or of another kind than the settings say."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or belongs to another network or config."""


class TrainingError(RuntimeError):
    """Training that cannot go on, for example because the loss is no longer finite."""


def nearest(name: object, allowed: Iterable[object]) -> str:
    """Returns `" Did you mean 'x'?"` for the allowed name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def check_choice(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raises `ConfigError` unless `value` is one of `allowed`.

    Args:
      key: dotted name of the setting, as the user writes it.
      value: what was given.
      allowed: the values that work.
    """
    options = sorted(str(a) for a in allowed)
    if str(value) not in options:
        raise ConfigError(
            f"{key}={value!r} is not known.{nearest(value, options)} Allowed: {', '.join(options)}."
        )
