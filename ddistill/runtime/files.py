"""Files that a power cut or a kill leaves whole: one way to write them, one way to read them.

A file is written under another name, brought to the disk and renamed, so that a reader finds the
old content or the new one. Files that are damaged nevertheless (by an older program, a full disk, a
network file system) raise `DamagedFile`, or read as None where the caller can recreate them.
"""

import contextlib
import errno
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from ddistill.errors import CheckpointError, ConfigError
from ddistill.runtime.leftovers import new_name
from ddistill.runtime.schemas import ANY, Schema
from ddistill.typing import JsonRecord

# Error numbers of file systems that cannot sync a folder; many network file systems cannot.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
# Errors of reading that say nothing about the content of a file.
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)
# Exceptions of reading a damaged npz archive; which one depends on the damaged bytes.
_DAMAGED_ARRAYS = (
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


class DamagedFile(ValueError):
    """A file with unexpected content; the message gives its path and the reason."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` where the block ends without an error.

    Folders on the way are made. File and folder are on the disk when the block has ended. The mode
    of the file is that of any new file: 0666 less the umask.

    Raises:
      OSError: the disk is full, the folder is not writable, or `path` is a folder. The old file is
        kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():  # before anything is written
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(new_name(path.name))
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file as UTF-8 with the line ends that `text` has; see `replacing`.

    Characters that UTF-8 cannot encode, such as bytes of file names in another encoding, are
    written as escapes.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_files(folder: Path, files: Mapping[str, str | bytes | Path]) -> None:
    """Writes whole files into a folder; see `replacing`.

    Args:
      folder: the folder.
      files: by name in the folder the content, or the place of a file that is copied.

    Raises:
      OSError: a file cannot be read or written.
    """
    for name, content in files.items():
        with replacing(folder / name) as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes a JSON file with sorted keys; see `replacing`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_arrays(path: str | os.PathLike, **arrays: ArrayLike) -> None:
    """Writes an npz archive; see `replacing`."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle


def sync_tree(folder: Path) -> None:
    """Flushes every file and folder below `folder` to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(Path(place) / name)
        _sync(Path(place))
    _sync(folder.parent)


def _sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk where the file system supports it."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(opened)


def read_text(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file.

    Raises:
      OSError: it cannot be read.
      DamagedFile: it is not UTF-8, or a folder.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except IsADirectoryError:
        raise DamagedFile(f"{path}: a folder in place of a file; move it elsewhere") from None
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path}: not UTF-8 text, at byte {error.start}") from None


def parse_object(text: str, path: str | os.PathLike) -> JsonRecord:
    """The JSON object that `text`, the content of `path`, holds; raises `DamagedFile`."""
    if not text.strip("\0 \t\r\n"):
        raise DamagedFile(f"{path}: not valid JSON: the file is empty")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        kind = "null" if found is None else type(found).__name__
        raise DamagedFile(f"{path}: expected an object, got {kind}")
    return found


def read_object(path: str | os.PathLike, schema: Schema = ANY) -> JsonRecord:
    """The object in a JSON file.

    Args:
      path: the file.
      schema: what the object has to hold.

    Raises:
      OSError: the file cannot be read, because it is not there or for another reason.
      DamagedFile: it is empty, cut off, not UTF-8, no JSON, no object, or not as `schema` has it;
        or it is a folder.
    """
    found = parse_object(read_text(path), path)
    if problem := schema.problem(found):
        raise DamagedFile(f"{path}: {problem}")
    return found


def read_object_or_none(path: str | os.PathLike, schema: Schema = ANY) -> JsonRecord | None:
    """As `read_object`, and None where the file is missing or damaged.

    Raises:
      OSError: the file is there and cannot be read, for example because of its mode.
      CheckpointError: `path` is a folder, so that no file can be written there.
    """
    try:
        return read_object(path, schema)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedFile as error:
        if Path(path).is_dir():
            raise CheckpointError(f"{error}.") from None
        return None


def read_arrays(path: str | os.PathLike, names: Sequence[str]) -> Mapping[str, np.ndarray] | None:
    """Arrays of an npz archive by name; None where it is missing or damaged or lacks one.

    Raises:
      OSError: the file is there and cannot be read, for example because of its mode.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except OSError as error:
        if error.errno in _UNREADABLE:
            raise
        return None
    except _DAMAGED_ARRAYS:
        return None


def cache_home() -> Path | None:
    """The user's cache folder: $XDG_CACHE_HOME, or ~/.cache; None for a user without a home.

    Containers that run under an arbitrary user number have neither HOME nor a passwd entry.
    """
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def expand(path: str | os.PathLike) -> Path:
    """A path with `~` at its beginning replaced by the home folder.

    Raises:
      ConfigError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{path}: no home folder stands behind '{Path(path).parts[0]}'. Set HOME, or give the "
            "whole path."
        ) from None
