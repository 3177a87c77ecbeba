"""Errors; messages give the key, the value, the allowed values and a remedy."""

import difflib
from collections.abc import Iterable, Mapping, Sequence


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


def nearest_setting(names: Sequence[str], group: Mapping[str, object]) -> str:
    """As `nearest`, for a setting that a group does not have.

    Settings of the same name in nested groups come first. Of one name, those of a very similar name
    come before less similar settings of the group itself. Of several names, such as
    "evalution.sample", the first has to be close to one of the group, and the others are looked for
    in it alone.

    Args:
      names: the unknown name, and the names given below it.
      group: nested settings.

    Returns:
      `" Did you mean 'optimizer.learning_rate'?"`, or an empty string.
    """
    below = _names_below(group)
    wanted = ".".join(names)
    same = [name for name in below if f".{name}".endswith(f".{wanted}")]
    if same:
        listed = "' or '".join(sorted(same, key=lambda name: (name.count("."), name))[:3])
        return f" Did you mean '{listed}'?"
    if len(names) > 1:
        return _nearest_below(names, group)
    last = {name.rpartition(".")[2]: name for name in reversed(below)}
    alike = difflib.get_close_matches(names[-1], last, n=1, cutoff=0.85)
    if alike and not difflib.get_close_matches(names[0], group, n=1, cutoff=0.7):
        return f" Did you mean '{last[alike[0]]}'?"
    return nearest(names[0], group)


def _nearest_below(names: Sequence[str], group: Mapping[str, object]) -> str:
    """As `nearest_setting`, for a name and the names below it."""
    found: list[str] = []
    inner: object = group
    for name in names:
        if not isinstance(inner, Mapping):
            break
        close = difflib.get_close_matches(name, [str(key) for key in inner], n=1, cutoff=0.5)
        if not close:
            break
        found.append(close[0])
        inner = inner[close[0]]
    return f" Did you mean '{'.'.join(found)}'?" if found else ""


def _names_below(group: Mapping[str, object], path: str = "") -> list[str]:
    """The dotted names of all settings of a group, outermost first."""
    names = {f"{path}{key}": value for key, value in group.items()}
    below = [_names_below(v, f"{n}.") for n, v in names.items() if isinstance(v, Mapping)]
    found = [*names, *(name for inner in below for name in inner)]
    return sorted(found, key=lambda name: name.count("."))


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


def in_words(numbers: Sequence[int]) -> str:
    """Increasing numbers in words: "0 to 4, 7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a} to {b}" if b > a else f"{a}" for a, b in found)
