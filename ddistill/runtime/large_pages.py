"""Large memory pages for programs that train on CPUs.

A CPU program of XLA allocates its intermediate results anew in each call. glibc can ask Linux for
pages of 2 MiB for them, which are cleared in a fraction of the time of pages of 4 KiB, if its
variable is set when a process starts (docs/benchmarks.md has the measurements).
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
_OPTION = "glibc.malloc.hugetlb"
_FIRST = (2, 35)  # of glibc, with this option
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# The id of the process that has been started anew, which keeps it. Something between this process
# and the next can drop the option (a wrapper of Python, the loader of a privileged program).
_DONE = "_DDISTILL_LARGE_PAGES"


def restart_with_large_pages() -> None:
    """Starts this program anew, in the same process, with large pages where that helps.

    Has to come before anything that takes long or writes. Nothing happens if the user has set the
    option (`glibc.malloc.hugetlb=0` for none), under a debugger, or where glibc and Linux do not
    offer it.
    """
    done = os.environ.pop(_DONE, "") == str(os.getpid())
    frozen = getattr(sys, "frozen", False) or not sys.executable
    if done or frozen or _is_watched() or not is_offered(os.environ, glibc_version(), _SWITCH):
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with contextlib.suppress(OSError):  # slower, but it works
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**with_large_pages(os.environ), _DONE: str(os.getpid())},
        )


def is_ours(words: Sequence[str]) -> bool:
    """Whether a command line is `python ... -m ddistill` or a module in the package."""
    places = [i for i, word in enumerate(words) if word == "-m"]
    if not places or places[0] + 1 == len(words):
        return False
    return words[places[0] + 1].split(".")[0] == "ddistill"


def _is_watched() -> bool:
    """Whether a debugger or a tool that measures coverage looks at this process."""
    if sys.gettrace() is not None:
        return True
    watching = getattr(sys, "monitoring", None)  # from Python 3.12 on
    if watching is None:
        return False
    return any(watching.get_tool(x) for x in (watching.DEBUGGER_ID, watching.COVERAGE_ID))


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
