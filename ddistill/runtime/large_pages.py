"""Large memory pages for programs that train on CPUs.

A CPU program of XLA allocates its intermediate results anew in each call. glibc can ask Linux for
pages of 2 MiB for them, which are cleared in a fraction of the time of pages of 4 KiB, if its
variable is set when a process starts (docs/benchmarks.md has the measurements).
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
_OPTION = "glibc.malloc.hugetlb"
_FIRST = (2, 35)  # of glibc, with this option
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_large_pages() -> None:
    """Starts this program anew, in the same process, with large pages where that helps.

    Has to come before anything that takes long or writes. Nothing happens if the user has set the
    option, under a debugger, or where glibc and Linux do not offer it.
    """
    if sys.gettrace() is not None or not is_offered(os.environ, glibc_version(), _SWITCH):
        return
    with contextlib.suppress(OSError):  # slower, but it works
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            with_large_pages(os.environ),
        )


def is_offered(environment: Mapping[str, str], glibc: tuple[int, ...], switch: Path) -> bool:
    """Whether the option is not set and would have an effect.

    Args:
      environment: as of `os.environ`.
      glibc: version of the C library; empty for another one.
      switch: the file of Linux that says which processes have large pages: all, those that ask for
        them, or none.
    """
    if _OPTION in environment.get(VARIABLE, "") or glibc < _FIRST:
        return False
    try:
        return "[madvise]" in switch.read_text()
    except OSError:
        return False


def with_large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the option beside the user's other ones."""
    options = [x for x in environment.get(VARIABLE, "").split(":") if x]
    return {**environment, VARIABLE: ":".join([*options, f"{_OPTION}=1"])}


def glibc_version() -> tuple[int, ...]:
    """Version of the C library; empty for another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return tuple(map(int, version.split(".")[:2])) if name == "glibc" else ()
    except (AttributeError, ValueError, OSError):
        return ()
