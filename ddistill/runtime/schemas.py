"""Schemas of the JSON objects that programs exchange: keys and kinds of values.

A valid JSON file may lack a key or hold null in place of a number, because an older program wrote
it or a user edited it. Readers state the keys and kinds that they need as a `Schema`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
      called: for messages, as in "a number".
      fits: whether a value is one.
    """

    called: str
    fits: Callable[[object], bool]


@dataclasses.dataclass(frozen=True)
class Schema:
    """The keys and kinds of values of an object; other keys are allowed.

    Attributes:
      needed: keys that have to be there, and what kind of value they have.
      known: keys that may be missing.
      agree: returns a problem of values that do not fit together, or "".
    """

    needed: Mapping[str, Kind] = dataclasses.field(default_factory=dict)
    known: Mapping[str, Kind] = dataclasses.field(default_factory=dict)
    agree: Callable[[Mapping], str] = lambda found: ""

    def problem(self, found: Mapping[str, object]) -> str:
        """The first problem of an object, or ""."""
        for key in self.needed:
            if key not in found:
                return f"key '{key}' is missing"
        for key, kind in {**self.needed, **self.known}.items():
            if key in found and not kind.fits(found[key]):
                return f"key '{key}' is {shown(found[key])}, and {kind.called} is needed"
        return self.agree(found)


def shown(value: object) -> str:
    """A value of a JSON file in a message."""
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "a list"
        return kind if value else f"{kind} of nothing"
    return json.dumps(value)[:40]


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number of 0 or more", _is_whole)
COUNT = Kind("a whole number of 1 or more", lambda value: _is_whole(value) and value != 0)
NUMBER = Kind(
    "a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def maybe(kind: Kind) -> Kind:
    """The kind, or null."""
    return Kind(f"{kind.called} or null", lambda value: value is None or kind.fits(value))


def list_of(kind: Kind, least: int = 0, most: int | None = None) -> Kind:
    """A list of values of one kind, with a least and a largest length."""

    def fits(value: object) -> bool:
        return (
            isinstance(value, list)
            and least <= len(value)
            and (most is None or len(value) <= most)
            and all(map(kind.fits, value))
        )

    length = f" {least}" if least and least == most else f" {least} or more" if least else ""
    return Kind(f"a list of{length} values, each {kind.called},", fits)


def map_of(kind: Kind, least: int = 0) -> Kind:
    """An object whose values are all of one kind."""

    def fits(value: object) -> bool:
        return (
            isinstance(value, dict) and len(value) >= least and all(map(kind.fits, value.values()))
        )

    return Kind(f"an object of values, each {kind.called},", fits)


def object_of(schema: Schema) -> Kind:
    """An object that a schema describes."""
    keys = ", ".join(schema.needed)
    return Kind(
        f"an object with {keys}",
        lambda value: isinstance(value, dict) and not schema.problem(value),
    )


ANY = Schema()
