"""Finds the program of a subcommand, and imports that program alone.

Each program has a function `main(argv, program)`, where `program` is the command before the
arguments, for messages. Most programs are also started as `python -m ddistill.NAME`.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import ddistill
from ddistill.command_line import USAGE_ERROR
from ddistill.errors import nearest
from ddistill.runtime.ending import answer_closed_output
from ddistill.text import make_streams_safe, printable


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
      summary: one line for the help.
      module: the module with its function `main`; "" for a group of subcommands.
      group: the subcommands of a group.
    """

    summary: str
    module: str = ""
    group: Mapping[str, "Command"] = field(default_factory=dict)


DATA = {
    "prepare": Command("prepare a TFDS image set", "ddistill.data.prepare"),
    "latents": Command("encode captioned images as latents and tokens", "ddistill.commands.data"),
}
COMMANDS = {
    "new": Command("write a config file for your own images", "ddistill.commands.new"),
    "train": Command(
        "train, distil, sample, score and report; the same command resumes",
        "ddistill.commands.train",
    ),
    "compare": Command("compare finished runs", "ddistill.compare"),
    "evaluate": Command("FID and other scores of images or of a run", "ddistill.evaluate"),
    "export": Command("export a student for other programs", "ddistill.export.__main__"),
    "pack": Command("copy a run with its shared stages to one folder", "ddistill.commands.pack"),
    "record": Command("add the results of runs to a record of results", "ddistill.record"),
    "data": Command("prepare data sets", group=DATA),
    "list": Command("list configs, methods, networks and samplers", "ddistill.commands.list"),
    "doctor": Command("report versions, devices, data and disk", "ddistill.doctor"),
}
_HELP = ("--help", "-h", "-help", "help")
_VERSION = ("--version", "-V", "-version", "version")


def run(argv: Sequence[str]) -> int:
    """Runs `ddistill ARGV...`.

    Returns:
      The exit status: 0, or 2 for an unknown subcommand. Programs end the process by `SystemExit`
      where another status is due.
    """
    make_streams_safe()
    started_as_module = Path(sys.argv[0]).name == "__main__.py"
    program = "python -m ddistill" if started_as_module else "ddistill"
    return _run(argv, program, COMMANDS)


def _run(argv: Sequence[str], program: str, commands: Mapping[str, Command]) -> int:
    name = argv[0] if argv else "--help"
    if name in _HELP:
        _say(_help(program, commands))
        return 0 if argv else USAGE_ERROR
    if commands is COMMANDS and name in _VERSION:
        _say(f"ddistill {ddistill.__version__}")
        return 0
    if name not in commands:
        _refuse(name, program, commands)
    command = commands[name]
    if command.group:
        return _run(argv[1:], f"{program} {name}", command.group)
    importlib.import_module(command.module).main(list(argv[1:]), f"{program} {name}")
    return 0


def _refuse(name: str, program: str, commands: Mapping[str, Command]) -> NoReturn:
    what = "a flag" if name.startswith("-") else "a command"
    hint = nearest(name, [*commands, "--help", "--version"])
    if name.startswith("--config"):
        hint = f" Did you mean '{program} train {name}'?"
    print(
        f"error: '{printable(name)}' is not {what} of {program}.{hint} "
        f"Commands: {', '.join(commands)}.",
        file=sys.stderr,
    )
    sys.exit(USAGE_ERROR)


def _help(program: str, commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands)) + 2
    lines = [f"usage: {program} COMMAND ...", "", "commands:"]
    lines += [f"  {name:<{width}}{command.summary}" for name, command in commands.items()]
    lines += ["", f"`{program} COMMAND --help` shows the arguments of a command."]
    if commands is COMMANDS:
        lines[1:1] = ["", (ddistill.__doc__ or "").split("\n")[0]]
        lines.append(f"First steps: `{program} train sfddm_digits` or `{program} new NAME`.")
    return "\n".join(lines)


def _say(text: str) -> None:
    with answer_closed_output():
        print(text)
