"""Writes docs/config.md: every setting with type, default and meaning, from the dataclasses.

Command: python docs/make_config_reference.py

Types and defaults are those of the fields, and meanings are read from the section "Attributes:" of
the class docstrings. A field without a meaning there is an error.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from ddistill.data import SOURCES
from ddistill.networks import NETWORKS
from ddistill.objectives import OBJECTIVES
from ddistill.protocol_settings import ProtocolSettings
from ddistill.samplers import SAMPLERS
from ddistill.schedules import SCHEDULES
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    LowRankSettings,
    MeshSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    StudentsSettings,
    TrainingSettings,
)

PAGE = Path(__file__).with_name("config.md")
# The prefix of a setting's dotted name, and its dataclass.
GROUPS: dict[str, type] = {
    "config": Settings,
    "config.schedule": ScheduleSettings,
    "config.stages.STAGE": StageSettings,
    "config.stages.STAGE.grid": GridSettings,
    "config.stages.STAGE.optimizer": OptimizerSettings,
    "config.stages.STAGE.students": StudentsSettings,
    "config.stages.STAGE.low_rank": LowRankSettings,
    "config.training": TrainingSettings,
    "config.training.mesh": MeshSettings,
    "config.evaluation": EvaluationSettings,
    "config.evaluation.protocol": ProtocolSettings,
}
INTRODUCTION = """# Settings

Every setting of a run, generated from the code by `python docs/make_config_reference.py`. A config
file returns them (`recipes` fills in what an experiment does not change), a flag
`--config.NAME=VALUE` overrides one, and `--print_config` prints all settings of a config. STAGE is
the name of a stage, such as `teacher` or `sfddm_n4`.
"""
_ITEM = re.compile(r"^ {2}(\w+(?:, \w+)*): (.*)$")


class NoMeaning(ValueError):
    """A setting whose class docstring does not say what it means."""


def meanings(cls: type) -> dict[str, str]:
    """The text of every name in the sections "Attributes:" of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        lines = inspect.cleandoc(base.__dict__.get("__doc__") or "").splitlines()
        if "Attributes:" not in lines:
            continue
        names: list[str] = []
        for line in lines[lines.index("Attributes:") + 1 :]:
            item = _ITEM.match(line)
            if item:
                names = item[1].split(", ")
                found |= dict.fromkeys(names, item[2])
            elif line.startswith("    ") and names:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
            elif line.strip():
                break
    return found


def fields_of(cls: type) -> list[dataclasses.Field]:
    """The fields that are settings: neither filled in by planning nor flax's own."""
    own = ("parent", "name") if hasattr(cls, "apply") else ()
    return [
        f for f in dataclasses.fields(cls) if f.name not in own and "filled_in" not in f.metadata
    ]


def rows(cls: type, skip: tuple[str, ...] = ()) -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of every setting of a dataclass.

    Args:
      cls: the dataclass.
      skip: fields that are not listed.

    Raises:
      NoMeaning: a field is missing in the docstring, or the docstring names no field.
    """
    text, hints = meanings(cls), typing.get_type_hints(cls)
    listed = [f for f in fields_of(cls) if f.name not in skip]
    where = f"{cls.__module__}.{cls.__qualname__}"
    for f in listed:
        if f.name not in text:
            raise NoMeaning(
                f"{where}.{f.name} has no meaning: add '{f.name}: ...' to the section "
                "'Attributes:' of the class docstring, then run "
                "python docs/make_config_reference.py."
            )
    unknown = sorted(own_meanings(cls) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise NoMeaning(f"{where}: 'Attributes:' names {', '.join(unknown)}, which is no field.")
    return [(f.name, type_name(hints[f.name]), default(f), text[f.name]) for f in listed]


def own_meanings(cls: type) -> set[str]:
    """The names in the section "Attributes:" of the class itself."""
    alone = type("Alone", (), {"__doc__": cls.__dict__.get("__doc__")})
    return set(meanings(alone))


def type_name(hint: object) -> str:
    """A type as the tables show it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping" if len(arguments) < 2 else f"mapping of {type_name(arguments[1])}"
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if arguments:
        return " or ".join(type_name(a) for a in arguments)
    names = {int: "int", float: "float", str: "text", bool: "bool", type(None): "None"}
    if hint is typing.Any:
        return "any"
    return names.get(hint, getattr(hint, "__name__", str(hint)))  # type: ignore[call-overload]


def default(f: dataclasses.Field) -> str:
    """The default of a field as a flag writes it; "required" where there is none."""
    if f.default_factory is not dataclasses.MISSING:
        return f"`{f.default_factory()}`"
    if f.default is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(f.default):
        return next(f"`{key}`" for key, cls in GROUPS.items() if cls is type(f.default))
    return f"`{f.default!r}`"


def table(cls: type, skip: tuple[str, ...] = ()) -> str:
    """The settings of a dataclass as a table in Markdown."""
    lines = ["| setting | type | default | meaning |", "|:--|:--|:--|:--|"]
    for name, kind, value, meaning in rows(cls, skip):
        cells = (f"`{name}`", kind, value, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def first_paragraph(thing: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(inspect.getdoc(thing) or "").split("\n\n")[0].split())


def choices(title: str, intro: str, classes: Mapping[str, type]) -> list[str]:
    """A section with a table for every class."""
    parts = [f"## {title}", intro]
    for name, cls in classes.items():
        if not cls.__module__.startswith("ddistill."):
            continue  # registered by a user
        skip = ("name",) if "name" in {f.name for f in fields_of(cls)} else ()
        parts += [f"### `{name}`", first_paragraph(cls)]
        if len(fields_of(cls)) > len(skip):
            parts.append(table(cls, skip))
    return parts


def options_of(function: Callable[..., object], first: int) -> str:
    """The keyword arguments of a function with their defaults, from number `first` on."""
    found = list(inspect.signature(function).parameters.values())[first:]
    named = [p for p in found if p.name != "dtype"]
    shown = [f"`{p.name}" + ("`" if p.default is p.empty else f"={p.default!r}`") for p in named]
    return ", ".join(shown) or "none"


def page() -> str:
    """The text of docs/config.md."""
    parts = [INTRODUCTION.strip()]
    for prefix, cls in GROUPS.items():
        parts += [f"## `{prefix}`", first_paragraph(cls), table(cls)]
    sources = {name: source.settings for name, source in SOURCES.items()}
    parts += choices("Data sources", "`config.data.name` is one of these.", sources)
    parts += choices(
        "Objectives", "`name` of `config.stages.STAGE.objective` is one of these.", dict(OBJECTIVES)
    )
    parts += choices(
        "Networks", "`name` of `config.stages.STAGE.network` is one of these.", dict(NETWORKS)
    )
    parts += [
        "## Schedules",
        "`config.schedule.name` is one of these, and `config.schedule.options` has its options.",
        "| name | options | meaning |\n|:--|:--|:--|\n"
        + "\n".join(
            f"| `{name}` | {options_of(make, 1)} | {first_paragraph(make)} |"
            for name, make in SCHEDULES.items()
        ),
        "## Samplers",
        "Names in `config.evaluation` and in `config.stages.STAGE.samplers`.",
        "| name | denoiser calls in N steps | noise alone decides | meaning |\n|:--|:--|:--|:--|\n"
        + "\n".join(
            f"| `{name}` | {s.evaluations(10)} for N = 10 | {'yes' if s.deterministic else 'no'} | "
            f"{first_paragraph(s.step)} |"
            for name, s in SAMPLERS.items()
            if s.step.__module__.startswith("ddistill.")
        ),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
