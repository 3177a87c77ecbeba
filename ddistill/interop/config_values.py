"""Checks of the JSON files that describe the networks of other libraries."""

from collections.abc import Collection, Mapping
from typing import TypeGuard

from ddistill.errors import ConfigError, nearest
from ddistill.typing import JsonRecord, Options

# Keys that diffusers' training scripts add to the config.json of an average (`unet_ema/`).
AVERAGE_NOTES = frozenset(
    (
        *("decay", "min_decay", "inv_gamma", "power"),
        *("optimization_step", "update_after_step", "use_ema_warmup"),
        # Of versions before 0.11.
        *("collected_params", "temp_stored_params"),
    )
)


def completed(
    config: Options, kind: str, defaults: Options, where: str, notes: Collection[str] = ()
) -> JsonRecord:
    """The options of a config.json, those that it lacks by their defaults.

    Args:
      config: the file's content; keys that begin with "_" are the library's own notes.
      kind: the class that the network must have.
      defaults: by option, of that class.
      where: the file's name, for messages.
      notes: other keys that are no options.

    Raises:
      ConfigError: another class, or an unknown key.
    """
    if config.get("_class_name", kind) != kind:
        raise ConfigError(
            f"{where}: _class_name is {config['_class_name']!r}; only {kind} can be read."
        )
    given = {k: v for k, v in config.items() if not k.startswith("_") and k not in notes}
    for key, value in given.items():
        if key not in defaults:
            raise ConfigError(
                f"{where}: {key}={value!r} is not an option of {kind} that is known here."
                f"{nearest(key, defaults)}"
            )
    return {**defaults, **given}


def check_fixed(c: Options, fixed: Mapping[str, tuple[object, ...]], where: str) -> None:
    """Raises `ConfigError` for an option with a value that is not supported.

    Args:
      c: all options.
      fixed: by option, the values that are supported.
      where: the file's name.
    """
    for key, allowed in fixed.items():
        # True is 1 in Python, and not in a config.
        if (type(c[key]) is bool, c[key]) not in [(type(a) is bool, a) for a in allowed]:
            raise ConfigError(
                f"{where}: {key}={c[key]!r} is not supported. Allowed: "
                f"{', '.join(repr(a) for a in allowed)}."
            )


def check_all(wanted: Collection[tuple[str, object, bool, str]], where: str) -> None:
    """Raises `ConfigError` for the first value that does not fit.

    Args:
      wanted: key, value, whether it fits, and the values that fit in words.
      where: the file's name.
    """
    for key, value, fits, what in wanted:
        if not fits:
            raise ConfigError(f"{where}: {key}={value!r} must be {what}.")


def is_whole(x: object, least: int = 1) -> bool:
    """Whether `x` is an integer of at least `least`; True and False are none."""
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def is_number(x: object) -> TypeGuard[float]:
    """Whether `x` is an integer or a float."""
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def are_whole(x: object, lengths: Collection[int] = ()) -> bool:
    """Whether `x` is a list of integers above 0, of one of `lengths` where some are given."""
    listed = isinstance(x, (list, tuple)) and len(x) > 0 and all(map(is_whole, x))
    return listed and (not lengths or len(x) in lengths)  # type: ignore[arg-type]


def are_texts(x: object) -> bool:
    """Whether `x` is a list of texts that is not empty."""
    return isinstance(x, (list, tuple)) and len(x) > 0 and all(isinstance(e, str) for e in x)
