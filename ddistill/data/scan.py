"""The image files of a folder, and what lies there beside them."""

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ddistill.data.decode import EXTENSIONS
from ddistill.data.names import is_hidden, is_system, text_of
from ddistill.errors import DataError
from ddistill.text import printable

# Endings and folders that a message lists before it counts the rest.
SHOWN = 8


class Wanted(NamedTuple):
    """The files that a source reads.

    Attributes:
      endings: of their names, in lower case.
      kind: what they are, in the plural.
      advice: what data.path should be, for messages.
    """

    endings: tuple[str, ...]
    kind: str
    advice: str


IMAGES = Wanted(
    EXTENSIONS,
    "images",
    "data.path is a folder of images, with a sub-folder for each class if there are any.",
)


class File(NamedTuple):
    """One file, of an image or of many.

    Attributes:
      name: path relative to the folder, with "/", as text that is the same on every host.
      path: the same as the host has it, to open the file.
      size: bytes.
      changed: when the content and the entry were changed last (mtime and ctime), in ns. Tools that
        copy files can set the first one, and not the second one.
    """

    name: str
    path: str
    size: int
    changed: tuple[int, int]

    @property
    def label(self) -> str:
        """Name of the top sub-folder, which is the class; "" for a file directly in the folder."""
        return self.name.partition("/")[0] if "/" in self.name else ""


@dataclass
class Scan:
    """What is in a folder and below it.

    Attributes:
      files: the images, sorted by name.
      others: files that are not read, by ending.
      hidden: hidden files and folders.
      system: names of the folders that belong to file servers or desktops, each with its number.
      empty: sub-folders without an image, whatever else lies in them.
      tables: files of `others` that have been read as metadata.
    """

    files: list[File] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    system: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    tables: set[Path] = field(default_factory=set)

    def left_out(self) -> tuple[str, ...]:
        """What is not read, in words: files by ending, folders by name, most frequent first."""
        kinds = _most(self.others - Counter(path.suffix.lower() for path in self.tables))
        found = [f"{n} {printable(kind)}" for kind, n in kinds[:SHOWN]]
        rest = kinds[SHOWN:]
        if rest:
            found.append(f"{sum(n for _, n in rest)} of {len(rest)} other endings")
        if self.hidden:
            found.append(f"{self.hidden} hidden")
        for name, n in _most(self.system):
            found.append(f"{n} x the folder {name}" if n > 1 else f"the folder {name}")
        if self.empty:
            shown = ", ".join(map(printable, self.empty[:SHOWN]))
            more = f" and {len(self.empty) - SHOWN} more" if self.empty[SHOWN:] else ""
            found.append(f"folders without images: {shown}{more}")
        return tuple(found)


def scan(root: Path, wanted: Wanted = IMAGES) -> Scan:
    """Looks through a folder and all below it; a link back to a parent is not followed.

    Raises:
      DataError: the folder is missing, is no folder, or holds none of the files.
    """
    _check_folder(root, wanted)
    found = Scan()
    found.files = sorted(_below(root, "", found, (), wanted.endings))
    if not found.files:
        kinds = ", ".join(f"{n} {kind}" for kind, n in found.others.most_common(5))
        holds = f"no {wanted.kind}, only other files ({kinds})" if found.others else "no files"
        raise DataError(
            f"data.path={root} holds {holds}. {wanted.kind.capitalize()} that are read: "
            f"{', '.join(wanted.endings)}.{_other_source(found, wanted)}"
        )
    empty = set(found.empty)
    found.empty = sorted(text_of(e) for e in empty if e.rpartition("/")[0] not in empty)
    return found


def file_of(path: Path) -> File:
    """A file on its own."""
    status = path.stat()
    changed = (status.st_mtime_ns, status.st_ctime_ns)
    return File(text_of(path.name), path.name, status.st_size, changed)


def digest(files: Sequence[File], times: bool = False) -> str:
    """SHA-256 of the names and sizes of files, with `times` of when they changed too."""
    text = hashlib.sha256()
    for f in files:
        line = f"{f.name}\0{f.size}\0{f.changed if times else ''}\n"
        text.update(line.encode("utf-8", "surrogateescape"))
    return text.hexdigest()


def _other_source(found: Scan, wanted: Wanted) -> str:
    """The data source that reads what lies there instead."""
    if wanted is IMAGES and ".parquet" in found.others:
        return " data.name='parquet' reads parquet files."
    if wanted is not IMAGES and any(kind in EXTENSIONS for kind in found.others):
        return " data.name='folder' reads images."
    return ""


def _below(
    folder: Path, prefix: str, found: Scan, parents: tuple[str, ...], endings: tuple[str, ...]
) -> Iterator[File]:
    """Files with some endings anywhere below a folder; notes in `found` what is left out."""
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in _entries(folder):
        if _passed_over(entry, found):
            continue
        path = prefix + entry.name
        if entry.is_dir():
            inside = list(_below(Path(entry.path), f"{path}/", found, (*parents, real), endings))
            if not inside:
                found.empty.append(path)
            yield from inside
        elif entry.name.lower().endswith(endings):
            yield _file(entry, path)
        else:
            found.others[Path(entry.name).suffix.lower() or "without suffix"] += 1


def _passed_over(entry: os.DirEntry, found: Scan) -> bool:
    """Whether an entry is hidden or the system's, which is noted in `found`."""
    if is_hidden(entry.name):
        found.hidden += 1
    elif is_system(entry.name) and entry.is_dir():
        found.system[entry.name] += 1
    else:
        return False
    return True


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from error


def _file(entry: os.DirEntry, path: str) -> File:
    try:
        status = entry.stat()
    except OSError:
        # A dangling link; decoding it names it, or skips it.
        return File(text_of(path), path, 0, (0, 0))
    changed = (status.st_mtime_ns, status.st_ctime_ns)
    return File(text_of(path), path, status.st_size, changed)


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent ones first; equal ones by name, so that no order is the host's."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _check_folder(root: Path, wanted: Wanted) -> None:
    advice = wanted.advice
    if root.is_dir():
        return
    if root.exists():
        raise DataError(f"data.path={root} is a file. {advice} If it is an archive, unpack it.")
    parent = root.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(root.name, names, n=1)
    hint = f" Did you mean '{parent / close[0]}'?" if close else ""
    where = "" if root.is_absolute() else f" in {Path.cwd()}"
    raise DataError(
        f"data.path={root} does not exist{where}.{hint} {advice} "
        "Put them there, or set --config.data.path=FOLDER."
    )
