"""Names of files that are being written, and the removal of those that a kill has left behind.

A file is written as `.NAME.HOST-PID-CHANCE.tmp` beside its place (`runtime.files`). A process that
is killed leaves it; the next one that owns the folder removes it when nobody writes it any more.
"""

import contextlib
import functools
import hashlib
import os
import re
import socket
import time
from pathlib import Path

# The host is needed: `.NAME.NUMBER-NUMBER.tmp` may well be a user's own file.
_NAME = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})\.tmp")
# After so many seconds without a change a file of another host counts as left behind, and before so
# many no file does: no name tells hosts apart for certain, and a file waits for nothing.
_DAY = 86400.0
_FRESH = 600.0


def new_name(name: str) -> str:
    """A name for the new content of a file, which no other writer has at any time."""
    # Process numbers repeat, on other hosts and in containers, so that chance is added.
    return f".{name}.{_host()}-{os.getpid()}-{_LIFE}{os.urandom(2).hex()}.tmp"


def remove_leftovers(*folders: Path) -> int:
    """Removes what killed processes have left directly in folders; returns how many files.

    Only files that no process has changed for ten minutes are removed. Files that a live process of
    this host may be writing stay, and those of other hosts for a day.
    Files with other names stay, whatever they are; what cannot be removed stays too.
    """
    removed = 0
    for path in (path for folder in folders for path in _named(folder)):
        with contextlib.suppress(OSError):
            if _is_left(path):
                path.unlink()
                removed += 1
    return removed


def _named(folder: Path) -> list[Path]:
    """Files in a folder that are called as files that are being written."""
    try:
        return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []


def _is_left(path: Path) -> bool:
    found = _NAME.fullmatch(path.name)
    if found is None or path.is_symlink() or not path.is_file():
        return False
    host, process, chance = found.groups()
    age = time.time() - path.stat().st_mtime
    if age < _FRESH:
        return False
    if host != _host():
        return age > _DAY
    if int(process) == os.getpid():
        # A container's first process has the same number in its next life.
        return not chance.startswith(_LIFE)
    return not _is_alive(int(process))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


@functools.cache
def _host() -> str:
    """Eight digits for this host since it was started and, of a container, for its processes."""
    text = socket.gethostname()
    # Hosts may share a name, and outside containers the number of the namespace.
    with contextlib.suppress(OSError):
        text += Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    with contextlib.suppress(OSError):
        text += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


# Of this process, to tell its files from those of an earlier one with its number.
_LIFE = os.urandom(2).hex()
