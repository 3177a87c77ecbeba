"""Names of temporary files, and the removal of files that killed processes have left.

A file is written as `.NAME.HOST-PID-RANDOM.tmp` beside its final path (`runtime.files`). A killed
process leaves it there; the next process that owns the folder removes it.
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
# Seconds without a change after which a file of another host is removed, and before which no file
# is: host names are not unique.
_DAY = 86400.0
_FRESH = 600.0


def new_name(name: str) -> str:
    """A name for the new content of a file, which no other writer has at any time."""
    # Process numbers repeat, on other hosts and in containers, so that chance is added.
    return f".{name}.{_host()}-{os.getpid()}-{_LIFE}{os.urandom(2).hex()}.tmp"


def remove_leftovers(*folders: Path) -> int:
    """Removes what killed processes have left directly in folders; returns how many files.

    A file is removed if it has not changed for ten minutes and its process on this host has ended,
    or if another host wrote it and it has not changed for a day. Files of other names are kept, and
    files that cannot be removed are ignored.
    """
    removed = 0
    for path in (path for folder in folders for path in _named(folder)):
        with contextlib.suppress(OSError):
            if _is_left(path):
                path.unlink()
                removed += 1
    return removed


def is_temporary(name: str) -> bool:
    """Whether a file of this name is being written, or was left by a killed process."""
    return _NAME.fullmatch(name) is not None


def _named(folder: Path) -> list[Path]:
    """Files in a folder that are called as files that are being written."""
    try:
        return [path for path in folder.iterdir() if is_temporary(path.name)]
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


# Distinguishes this process from an earlier one of the same number.
_LIFE = os.urandom(2).hex()
