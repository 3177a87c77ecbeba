"""Provenance that may be published: what ran, on what, without names or paths of the machine."""

import os
import platform
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def machine_string(devices: Sequence[object] | None = None) -> str:
    """Processor model, usable cores and accelerators, for example "Xeon 8370C, 2 cores, 1x H100".

    Args:
      devices: JAX devices (anything with `platform` and `device_kind`); `jax.devices()` if None.
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


def command_string(argv: Sequence[str] | None = None, module: str = "ddistill.main") -> str:
    """The command to type for this run, `python -m module ...`, without paths of the machine.

    Absolute paths below the working directory become relative, others keep their last part.

    Args:
      argv: arguments with the program name first; `sys.argv` if None.
      module: what `python -m` runs.
    """
    argv = list(sys.argv if argv is None else argv)
    return " ".join(["python", "-m", module, *(shlex.quote(portable(a)) for a in argv[1:])])


def portable(argument: str) -> str:
    """A path or FLAG=PATH without what is of this machine; anything else as it is."""
    flag, equals, value = argument.partition("=")
    if not equals:
        flag, value = "", argument
    path = Path(value)
    if path.is_absolute():
        here = Path.cwd()
        value = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return f"{flag}{equals}{value}"


def _cores() -> int:
    # What this process may use, which under a scheduler is less than what the board has.
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
