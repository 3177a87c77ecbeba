"""`ddistill list [WHAT] [--config=FILE]`: configs, methods, networks and samplers by name."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ddistill.command_line import Parser, one_line_ending
from ddistill.config_names import (
    ConfigFileError,
    local_configs,
    shipped_configs,
    summary,
)
from ddistill.errors import check_choice
from ddistill.extensions import added
from ddistill.text import printable

T = TypeVar("T")
# Names with one line on each.
Table = Mapping[str, str]


@one_line_ending(ConfigFileError)
def main(argv: Sequence[str] | None = None, program: str = "ddistill list") -> None:
    """Entry point of the command line; exit status 1 with a message for unusable arguments."""
    parser = Parser(
        program, "Names that settings and commands accept, with one line on each of them."
    )
    kinds = ", ".join(KINDS)
    parser.add_argument("what", nargs="?", metavar="WHAT", help=f"{kinds} (default: all)")
    parser.add_argument(
        "--config", default="", help="config file: also list what its modules register"
    )
    options = parser.parse_all(argv)
    if options.what:
        check_choice("WHAT", options.what, KINDS)
    if options.config:
        # Imported here, because it takes seconds together with the recipes of a config.
        importlib.import_module("ddistill.config_files").load_config(options.config)
    print("\n\n".join(_section(kind) for kind in KINDS if options.what in (None, kind)))


def configs() -> Table:
    """The user's config files and those of the package, by the name that `--config` accepts."""
    own = {
        name: f"{summary(path) or 'no docstring'} ({path})"
        for name, path in local_configs().items()
    }
    shipped = {name: summary(path) for name, path in shipped_configs().items() if name not in own}
    return {**own, **shipped}


def methods() -> Table:
    """The objectives with the first line of their docstrings."""
    return _registered("objective", _table("ddistill.objectives", "OBJECTIVES"), _first_line)


def networks() -> Table:
    """The networks with the first line of their docstrings."""
    return _registered("network", _table("ddistill.networks", "NETWORKS"), _first_line)


def samplers() -> Table:
    """The samplers with the first line of the docstring of their first update rule."""
    return _registered(
        "sampler",
        _table("ddistill.samplers", "SAMPLERS"),
        lambda sampler: _first_line(sampler.first or sampler.step) or sampler.label,
    )


# By the word of the command line: the names, and the setting or argument that takes them.
KINDS: dict[str, tuple[Callable[[], Table], str]] = {
    "configs": (configs, "ddistill train NAME, or NAME:smoke for seconds of training"),
    "methods": (methods, "config.stages.STAGE.objective.name"),
    "networks": (networks, "config.stages.STAGE.network.name"),
    "samplers": (samplers, "config.evaluation.teacher_samplers, config.stages.STAGE.samplers"),
}


def _section(kind: str) -> str:
    table, place = KINDS[kind]
    names = table()
    width = max(len(printable(name)) for name in names) + 2
    lines = [f"  {printable(name):<{width}}{printable(text)}" for name, text in names.items()]
    return "\n".join([f"{kind} ({place}):", *lines])


def _table(module: str, name: str) -> Mapping[str, Any]:
    return getattr(importlib.import_module(module), name)


def _registered(kind: str, table: Mapping[str, T], text_of: Callable[[T], str]) -> Table:
    """One line for each entry of a table, with the module of the entries that a user has added."""
    found = {}
    for name, value in table.items():
        extension = added(kind, name)
        origin = f" (from {extension.module})" if extension else ""
        found[name] = f"{text_of(value)}{origin}".strip()
    return found


def _first_line(value: object) -> str:
    return (value.__doc__ or "").strip().split("\n")[0]
