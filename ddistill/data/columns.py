"""Columns of tables that describe images: classes and texts."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from ddistill.data.names import in_order
from ddistill.errors import ConfigError, DataError, nearest
from ddistill.text import printable

# Value of data.label_column for a set without classes.
NO_LABELS = "none"
_KINDS: dict[type, str] = {str: "a text", int: "a whole number", bool: "true or false"}
_WITHOUT = f"set data.label_column='{NO_LABELS}' to use the set without classes"


def check_column(key: str, given: str, there: Sequence[str], title: str) -> None:
    """Raises `ConfigError` unless the setting `key` names a column of the set."""
    if given not in there:
        raise ConfigError(
            f"{key}={given!r} is no column of {title}.{nearest(given, there)} "
            f"Allowed: {', '.join(map(printable, there)) or 'none'}."
        )


def class_texts(values: Sequence[object], name: Callable[[int], str], column: str) -> list[str]:
    """The values of a column of classes as text.

    Args:
      values: [N] texts, integers, or truth values.
      name: row i in messages.
      column: name of the column.

    Raises:
      DataError: a value is missing or of another type, or types differ; the message names the row.
    """
    kinds: dict[type, int] = {}
    for i, value in enumerate(values):
        if value is None or value == "":
            raise DataError(
                f"{name(i)} has no class: its '{printable(column)}' is empty. Fill it in, or "
                f"{_WITHOUT}."
            )
        if not isinstance(value, str | int):
            raise DataError(
                f"{name(i)}: '{printable(column)}' is a {type(value).__name__}; a class is a text "
                f"or a whole number. Choose another data.label_column, or {_WITHOUT}."
            )
        kinds.setdefault(type(value), i)
    if len(kinds) > 1:
        (one, i), (other, k) = list(kinds.items())[:2]
        raise DataError(
            f"'{printable(column)}' is {_KINDS[one]} in {name(i)} and {_KINDS[other]} in "
            f"{name(k)}. Write all classes as text or all as numbers."
        )
    return [str(value) for value in values]


def number_classes(
    texts: Sequence[str], classes: Sequence[str], name: Callable[[int], str], training: str
) -> Int[np.ndarray, " N"]:
    """The number of the class of every row, int32.

    Args:
      texts: [N] names of classes.
      classes: all names in their order.
      name: row i in messages.
      training: where the classes are from, in messages.

    Raises:
      DataError: a row is of another class.
    """
    numbers = {text: i for i, text in enumerate(classes)}
    for i, text in enumerate(texts):
        if text not in numbers:
            shown = ", ".join(map(printable, classes[:10])) + (", ..." if classes[10:] else "")
            raise DataError(
                f"{name(i)} is of the class '{printable(text)}', which {training} does not have. "
                f"Classes there: {shown}."
            )
    return np.array([numbers[text] for text in texts], np.int32)


def declared_numbers(
    values: Sequence[object], classes: Sequence[str], name: Callable[[int], str], column: str
) -> Int[np.ndarray, " N"]:
    """The numbers in a column of which the schema names the classes, int32.

    Raises:
      DataError: a value is missing or is no number of a class; the message names the row.
    """
    for i, value in enumerate(values):
        if type(value) is not int or not 0 <= value < len(classes):
            # Test sets of competitions have -1.
            raise DataError(
                f"{name(i)} has no class: its '{printable(column)}' is {value!r}; classes are 0 to "
                f"{len(classes) - 1}. Remove such rows, or {_WITHOUT}."
            )
    return np.array(values, np.int32).reshape(len(values))


def ordered(texts: Sequence[str]) -> tuple[str, ...]:
    """The classes that occur in a column, numbers by value and other names in natural order."""
    return in_order(set(texts))


def check_left(before: np.ndarray, after: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Raises `DataError` where a class is left without images because none of them can be read."""
    missing = np.setdiff1d(before, after)
    if len(missing):
        raise DataError(
            f"No training image of the class '{printable(classes[missing[0]])}' in {title} can be "
            f"read, and {len(missing)} of {len(classes)} classes are left without any. Repair the "
            "images or remove their rows."
        )
