"""Config files and the flags that override their settings: loading, and errors in one line.

`--config=FILE[:VARIANT]` runs the function `get_config` of a Python file, which
`ddistill.config_names` finds; flags such as `--config.seed=1` then change single settings.
"""

import ast
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

from absl import flags
from ml_collections import ConfigDict

from ddistill.config_names import ConfigFileError, find_config
from ddistill.errors import CheckpointError, ConfigError, DataError, nearest, nearest_setting

_MODULE = "ddistill_config_file"
# Names that other libraries use for settings.
_ALIASES = {
    "lr": "learning_rate", "epochs": "steps", "iterations": "steps", "bs": "batch_size",
    "batch": "batch_size", "dataset": "name", "data_dir": "path",
}  # fmt: skip
_KINDS = {int: "a whole number", float: "a number", bool: "True or False"}


class ConfigFileParser(flags.ArgumentParser):
    """Reads the value of `--config`, and checks the flags that change the config.

    Attributes:
      given: the value that was read last, FILE[:VARIANT].
    """

    given = ""

    def parse(self, argument: str) -> ConfigDict | None:
        """The locked config of FILE[:VARIANT]; None for an argument of None.

        Raises:
          ConfigFileError: see `load_config` and `check_override`.
        """
        config = load_config(argument)
        self.given = argument
        for text in overrides(sys.argv[1:]):
            check_override(config, text)
        return config.lock()

    def flag_type(self) -> str:
        """The name of the type in the help."""
        return "config file"


def overrides(arguments: Sequence[str]) -> list[str]:
    """The flags that override settings, as KEY=VALUE, also if given as two words."""
    found = []
    for word, following in zip(arguments, [*arguments[1:], ""]):
        flag = word.lstrip("-")
        if word.startswith("-") and flag.startswith(("config.", "noconfig.")):
            bare = "=" not in flag and following and not following.startswith("-")
            found.append(f"{flag}={following}" if bare else flag)
    return found


def load_config(argument: str) -> ConfigDict:
    """The result of the function `get_config` of a file.

    Args:
      argument: FILE, or FILE:VARIANT, where VARIANT is the function's argument; FILE is a path, or
        a name as of `ddistill.config_names.find_config`.

    Raises:
      ConfigFileError: there is no such file or function, or it fails or returns no settings; with
        the number of the line.
    """
    name, colon, variant = argument.partition(":")
    path = str(find_config(name))
    try:
        get_config = getattr(_load(path), "get_config", None)
    except Exception as error:
        raise ConfigFileError(_failure(path, error)) from error
    if not callable(get_config):
        raise ConfigFileError(
            f"The config file {path} has no function get_config(variant) that returns the settings."
        )
    given = (variant,) if colon else ()
    _check_variant(path, get_config, given)
    try:
        config = get_config(*given)
    except (Exception, SystemExit) as error:
        raise ConfigFileError(_failure(path, error)) from error
    if isinstance(config, ConfigDict):
        return config
    if isinstance(config, Mapping):
        return ConfigDict(dict(config))
    raise ConfigFileError(
        f"get_config of {path} returns {'nothing' if config is None else type(config).__name__}; "
        "it has to return an ml_collections.ConfigDict with the settings."
    )


class _SourceAlone(SourceFileLoader):
    """Loads a file without bytecode beside it.

    Python takes bytecode for current where the source has the same size and was written in the
    same second: of a config that a script changes, the settings of before would be read.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The compiled source."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _load(path: str) -> ModuleType:
    # Modules beside the file, such as a method of the user's own, can be imported by it, and later
    # by the run's other programs in this process.
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    loader = _SourceAlone(_MODULE, path)
    spec = spec_from_loader(_MODULE, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[_MODULE] = module
    loader.exec_module(module)
    return module


def _check_variant(path: str, get_config: Callable[..., object], given: tuple[str, ...]) -> None:
    """Raises `ConfigFileError` unless the function takes the variant, or needs none."""
    try:
        signature = inspect.signature(get_config)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*given)
    except TypeError:
        text = (
            f"takes no variant; leave ':{given[0]}' out" if given else "needs a variant: FILE:NAME"
        )
        raise ConfigFileError(f"get_config of {path} {text}.") from None


def _failure(path: str, error: BaseException) -> str:
    """One line for an exception of a config file, with the line of the file."""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}, line {error.lineno}" if error.lineno else error.filename
        return f"The config file {path} fails: {type(error).__name__}: {error.msg} ({where})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f" ({path}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, ConfigError | DataError | CheckpointError):
        return f"{error}{where}"
    if isinstance(error, SystemExit):
        return f"The config file {path} ends the program instead of returning settings.{where}"
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"The config file {path} fails: {reason}{where}"


def check_override(config: ConfigDict | Mapping[str, object], text: str) -> None:
    """Checks a flag that changes a config.

    Args:
      config: the config.
      text: `config.KEY=VALUE` as of `overrides`.

    Raises:
      ConfigFileError: the key is no setting, with the nearest one, or the value is of another type.
    """
    flag, equals, value = text.partition("=")
    if "[" in flag:  # an index, which ml_collections reads
        return
    negated = flag.startswith("no")
    names = flag.removeprefix("no").split(".")[1:]
    group: object = config
    for i, name in enumerate(names):
        path = ".".join(["config", *names[:i]])
        if not isinstance(group, ConfigDict | Mapping):
            raise ConfigFileError(f"--{text}: {path} is a value and has no settings.")
        if name not in group:
            raise ConfigFileError(
                f"--{text}: {path}.{name} is not a setting."
                f"{nearest_setting(names[i:], _plain_groups(group))} "
                f"Known in {path}: {', '.join(sorted(map(str, group)))}."
            )
        # A placeholder without a value has a type.
        kind = group.get_type(name) if isinstance(group, ConfigDict) else type(group[name])
        group = group[name]
    _check_value(text, ".".join(["config", *names]), kind, value, bare=not equals or negated)


def _plain_groups(group: ConfigDict | Mapping[str, object]) -> dict[str, object]:
    """Groups of settings as dictionaries; `ConfigDict` is no `Mapping`."""
    values = {str(key): group[key] for key in group}
    return {
        key: _plain_groups(value) if isinstance(value, ConfigDict | Mapping) else value
        for key, value in values.items()
    }


def _check_value(text: str, key: str, kind: type, value: str, bare: bool) -> None:
    """Raises `ConfigFileError` unless a value can be read as the type that the setting has."""
    if isinstance(kind, type) and issubclass(kind, ConfigDict):
        if not isinstance(_literal(value), dict):
            raise ConfigFileError(
                f"--{text}: {key} is a group of settings; change one of them, --{key}.NAME=VALUE."
            )
        return
    if bare:
        if kind is not bool:
            raise ConfigFileError(f"--{text}: a value is missing: --{key}=VALUE.")
        return
    if kind is tuple:
        _check_list(text, key, value)
        return
    try:
        if kind is int:
            flags.IntegerParser().parse(value)
        elif kind is float:
            flags.FloatParser().parse(value)
        elif kind is bool:
            flags.BooleanParser().parse(value)
    except (TypeError, ValueError):
        raise ConfigFileError(
            f"--{text}: {value!r} is not {_KINDS[kind]}.{_as_whole_number(kind, value)}"
        ) from None


def _as_whole_number(kind: type, value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        return ""
    return f" Write {number:.0f}." if kind is int and number.is_integer() else ""


def _check_list(text: str, key: str, value: str) -> None:
    """Raises `ConfigFileError` for a list that would be parsed as one text."""
    if "," in value and isinstance(_literal(value), str):
        items = [item.strip(" '\"()[]") for item in value.split(",")]
        listed = "(" + ", ".join(f"'{item}'" for item in items if item) + ")"
        raise ConfigFileError(f'--{text}: write a list of texts as --{key}="{listed}".')


def _literal(value: str) -> object:
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return value


def wrong_flag(error: flags.IllegalFlagValueError) -> str:
    """One line for a flag with a value of another type."""
    text = str(error)
    match = re.match(r"flag --(\w+)=(.*): ", text, re.DOTALL)
    kind = flags.FLAGS[match[1]].flag_type() if match and match[1] in flags.FLAGS else ""
    names = {"int": _KINDS[int], "float": _KINDS[float], "bool": _KINDS[bool]}
    if match is None or kind not in names:
        return text
    return f"--{match[1]}={match[2]}: {match[2]!r} is not {names[kind]}."


def unknown_flag(name: str, value: str, known: Sequence[str], config: object) -> str:
    """One line for a flag that does not exist.

    Args:
      name: the flag, without dashes.
      value: the value of the flag, or "".
      known: the flags that exist.
      config: the config that was loaded, or None.
    """
    given = f"={value}" if value else ""
    shown = f"--{name}{given}"
    if name.startswith("config.") and config is None:
        return f"{shown} changes a setting, but --config=FILE is missing."
    head, dot, rest = name.partition(".")
    if dot and nearest(head, ["config"]):
        return f"{shown} is not a flag. Did you mean '--config.{rest}{given}'?"
    keys = _settings_called(name, config)
    if keys:
        more = f", or {len(keys) - 4} others" if len(keys) > 4 else ""
        listed = " or ".join(f"--{key}{given}" for key in keys[:4]) + more
        return f"{shown} is not a flag. To change that setting of the config write {listed}."
    close = nearest(f"--{name}", [f"--{flag}" for flag in known]) if not dot else ""
    if name == "h":
        close = " Did you mean '--help'?"
    return (
        f"{shown} is not a flag.{close} Settings of the config are changed by --config.KEY=VALUE."
    )


def _settings_called(name: str, config: object) -> list[str]:
    """Dotted names of the settings that end in `name`, outermost first."""
    wanted = _ALIASES.get(name, name).split(".")
    found: list[list[str]] = []

    def walk(group: object, path: list[str]) -> None:
        if len(path) > 1 and path[-len(wanted) :] == wanted:
            found.append(path)
        if isinstance(group, ConfigDict | Mapping):
            for key in group:
                walk(group[key], [*path, str(key)])

    walk(config, ["config"])
    return [".".join(path) for path in sorted(found, key=len)]
