"""Reading of records: an object of JSON becomes a dataclass, or the error names the key."""

from dataclasses import MISSING, Field, fields
from typing import TypeVar

from ddistill.errors import nearest

T = TypeVar("T")


def record_of(cls: type[T], item: object, where: str) -> T:
    """Builds the dataclass `cls` from an object of JSON that has its fields as keys.

    Args:
      cls: a dataclass; fields with a default may be missing from `item`.
      item: the object as `json.loads` returns it.
      where: file and number of the record, for messages.

    Raises:
      ValueError: `item` is not an object, a key is missing or unknown, or `cls` refuses a value.
    """
    if not isinstance(item, dict):
        raise ValueError(f"{where}: expected an object, got {type(item).__name__}.")
    known = fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in known]
    for field in known:
        if _is_required(field) and field.name not in item:
            raise ValueError(
                f"{where}: key '{field.name}' is missing. Allowed: {', '.join(names)}."
            )
    for key in item:
        if key not in names:
            raise ValueError(
                f"{where}: key '{key}' is not known.{nearest(key, names)}"
                f" Allowed: {', '.join(names)}."
            )
    try:
        return cls(**item)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
