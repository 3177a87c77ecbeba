"""What a user's own modules have added: objectives, networks, data sources, samplers, loggers.

The tables of the package (`objectives.OBJECTIVES`, `networks.NETWORKS`, `data.SOURCES`,
`samplers.SAMPLERS`, `loggers.LOGGERS`) hold what is registered; this module remembers the module
and the version of each addition, for messages, digests and the files of a run.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ddistill.errors import ConfigError, nearest

KINDS = ("objective", "network", "data", "sampler", "logger")
# A script, and a config file as `ddistill.config_files` loads it.
_NOT_IMPORTABLE = ("__main__", "ddistill_config_file")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Extension:
    """One addition.

    Attributes:
      kind: one of `KINDS`.
      name: by which settings name it.
      module: the dotted name of the module that registers it.
      version: goes up where the same settings mean another training.
    """

    kind: str
    name: str
    module: str
    version: int = 1


_ADDED: dict[tuple[str, str], Extension] = {}


def added(kind: str, name: str) -> Extension | None:
    """The addition of a kind and name; None for what belongs to the package."""
    return _ADDED.get((kind, name))


def add(table: dict, extension: Extension, value: object) -> None:
    """Puts a value into a table of the package.

    A module may be loaded twice, as config files are: the later definition of the same module
    replaces the earlier one.

    Args:
      table: of the extension's kind.
      extension: describes the addition.
      value: the addition.

    Raises:
      ConfigError: the name is no lower-case identifier or is taken, or the version is below 1.
    """
    kind, name = extension.kind, extension.name
    call = f"ddistill.register.{kind}({name!r})"
    # A finished run is opened without its loggers, so that these may be in a notebook.
    if extension.module in _NOT_IMPORTABLE and kind != "logger":
        raise ConfigError(
            f"{call} is in the config file or the script itself, which a finished run cannot "
            "import later. Put it into a module beside the file, and import that."
        )
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{call}: a name has lower-case letters, digits and '_' alone.")
    if extension.version < 1:
        raise ConfigError(f"{call}: version={extension.version} must be 1 or more.")
    before = added(kind, name)
    if name in table and (before is None or before.module != extension.module):
        owner = "ddistill" if before is None else f"the module '{before.module}'"
        raise ConfigError(f"{call}: the name is taken by {owner}. Choose another one.")
    table[name] = value
    _ADDED[kind, name] = extension


def in_use(names: Mapping[str, set[str]]) -> list[Extension]:
    """The additions among the names of a run, by kind, in order."""
    found = (added(kind, name) for kind in KINDS for name in sorted(names.get(kind, ())))
    return [extension for extension in found if extension is not None]


def import_noted(noted: Mapping[str, object], importer: Callable[[str], object]) -> None:
    """Imports the modules of the additions that a run has noted, unless they are imported.

    Args:
      noted: by "KIND NAME", the name of the module that registers it.
      importer: imports a module by its name.

    Raises:
      ConfigError: a module cannot be imported, or does not register the addition.
    """
    for key, module in noted.items():
        kind, _, name = key.partition(" ")
        if added(kind, name) is not None:
            continue
        failure = ""
        try:
            importer(str(module))
        except ImportError as error:
            failure = f" ({error})"
        if added(kind, name) is None:
            known = [n for k, n in _ADDED if k == kind]
            raise ConfigError(
                f"the run uses the {kind} '{name}' of the module '{module}', which is not "
                f"registered{failure}.{nearest(name, known)} Put the folder of that module on "
                "PYTHONPATH, or import it before."
            )
