"""Reading settings: nested mappings into the frozen dataclasses of `ddistill.settings`, strictly.

A config file returns an `ml_collections.ConfigDict`; `parse` turns it into dataclasses and raises
`ConfigError` for every other key. The method, the network and the data source check the keys inside
`objective`, `network` and `data`.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ddistill.errors import ConfigError, nearest_setting
from ddistill.settings import Settings
from ddistill.typing import JsonRecord, Options

T = TypeVar("T")


def parse(config: Options, cls: type[T] = Settings, path: str = "config") -> T:  # type: ignore[assignment]
    """Turns nested mappings into the dataclass `cls`, strictly.

    Args:
      config: an `ml_collections.ConfigDict` or nested plain dictionaries.
      cls: the dataclass to build.
      path: dotted name of `config`, for messages.

    Raises:
      ConfigError: an unknown or missing key, or a value of another type; the message names the
        key, the value, the allowed values and the nearest match.
    """
    plain = to_plain(config)
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}={plain!r} should be a group of settings.")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in plain:
        if key not in fields:
            raise ConfigError(
                f"{path}.{key} is not a setting.{nearest_setting((key,), _groups(cls))} "
                f"Known in {path}: {', '.join(sorted(fields))}."
            )
    hints = typing.get_type_hints(cls)
    values = {name: convert(value, hints[name], f"{path}.{name}") for name, value in plain.items()}
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{path}.{name} is missing and has no default.")
    return cls(**values)


def _groups(cls: type) -> dict[str, object]:
    """The names of the settings of a dataclass, nested by group."""
    hints = typing.get_type_hints(cls)
    return {
        f.name: _groups(hints[f.name]) if dataclasses.is_dataclass(hints[f.name]) else None
        for f in dataclasses.fields(cls)
    }


def to_plain(value: object) -> Any:
    """Returns `value` with ConfigDicts and other mappings as dicts and lists as tuples."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(to_plain(v) for v in value)
    return value


def convert(value: object, hint: Any, path: str) -> Any:
    """Checks a value of a setting against its type and converts nested groups.

    Args:
      value: as `to_plain` gives it.
      hint: annotation of a field: a dataclass, a mapping, a tuple or a scalar's type; or `Any` or a
        union, whose values the owner of the setting checks.
      path: dotted name of the setting, for messages.

    Raises:
      ConfigError: as `parse`.
    """
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse(value, hint, path)  # type: ignore[arg-type]
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={value!r} should be a group of settings.")
        inner = typing.get_args(hint)[1]
        return {k: convert(v, inner, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        items = value if isinstance(value, tuple) else (value,)
        return tuple(convert(v, inner, f"{path}[{i}]") for i, v in enumerate(items))
    if hint is Any or isinstance(hint, types.GenericAlias | types.UnionType):
        return value
    return _scalar(value, hint, path)


def _scalar(value: object, hint: type, path: str) -> object:
    wrong_bool = isinstance(value, bool) and hint is not bool
    if hint is float and isinstance(value, int) and not wrong_bool:
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if wrong_bool or not isinstance(value, hint):
        raise ConfigError(f"{path}={value!r} is {kind_of(type(value))}; {kind_of(hint)} is needed.")
    return value


def kind_of(cls: type) -> str:
    """A type of settings in words."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "a truth value"}
    return words.get(cls, f"a {cls.__name__}")


def plain(config: object) -> JsonRecord:
    """A config as JSON holds it: dictionaries, lists, text, numbers, booleans and None."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    return json.loads(json.dumps(config, default=str))
