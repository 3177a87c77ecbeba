"""Provenance for publication: command and machine, without names or paths of the machine."""

import os
import platform
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def machine_string(devices: Sequence[object] | None = None) -> str:
    """Describes processor, usable cores and accelerators: "Xeon 8370C, 2 cores, 1x H100".

    Args:
      devices: objects with `platform` and `device_kind`; None for `jax.devices()`.
    """
    if devices is None:
        import jax

        devices = jax.devices()
    kinds = Counter(
        str(getattr(d, "device_kind", "unknown"))
        for d in devices
        if getattr(d, "platform", "cpu") != "cpu"
    )
    cores = _cores()
    parts = [_cpu_model(), f"{cores} core{'s' if cores != 1 else ''}"]
    parts += [f"{count}x {kind}" for kind, count in sorted(kinds.items())] or ["no accelerator"]
    return ", ".join(parts)


def command_string(
    argv: Sequence[str] | None = None, program: str = "python -m ddistill.main"
) -> str:
    """Returns the command of this process, `PROGRAM ...`, without paths of the machine.

    Absolute paths below the working directory become relative; others keep only their last part.

    Args:
      argv: program name and arguments; None for `sys.argv`.
      program: words before the arguments.
    """
    argv = list(sys.argv if argv is None else argv)
    return " ".join([program, *(shlex.quote(portable(a)) for a in argv[1:])])


def portable(argument: str) -> str:
    """Removes folders of the machine from a path or FLAG=PATH; other text does not change."""
    flag, equals, value = argument.partition("=")
    if not equals:
        flag, value = "", argument
    path = Path(value)
    if path.is_absolute():
        here = Path.cwd()
        value = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return f"{flag}{equals}{value}"


def _cores() -> int:
    # A scheduler may allow the process fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^(?:model name|Processor|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    name = match.group(1) if match else platform.processor() or platform.machine()
    return re.sub(r"\s+", " ", name).strip() or "unknown processor"
