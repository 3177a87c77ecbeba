"""Captioned images in tar archives of the webdataset layout, such as img2dataset writes.

The files of an example lie one after the other and share a name up to its first dot: 000017.jpg,
000017.txt, 000017.json. Archives are read in place and nothing is unpacked.
"""

import glob
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ddistill.data.captions.choices import COLUMNS, Choices
from ddistill.data.captions.rows import (
    DUPLICATE,
    EMPTY,
    ENCODING,
    IMAGE,
    MISSING,
    UNUSED,
    CaptionSource,
    Collector,
    Row,
)
from ddistill.data.captions.texts import decode_text
from ddistill.data.decode import EXTENSIONS
from ddistill.data.names import natural_key, text_of
from ddistill.errors import DataError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# An archive ends in two blocks of zeros.
_END = 1024
# Captions are short: a larger text or JSON file is something else.
_MOST_BYTES = 1 << 20


def read_tars(pattern: str, choices: Choices) -> CaptionSource:
    """The captioned images of tar archives, in the order of the archives and of their content.

    Args:
      pattern: an archive, a folder of archives, or a pattern such as "data/*.tar".
      choices: `column` is the key of the caption in NAME.json where there is no NAME.txt.

    Raises:
      DataError: there is no archive, or one is compressed or damaged.
    """
    collector = Collector(choices.markup)
    for path in _archives(pattern):
        for key, members in _examples(path, collector):
            _add(path, key, members, choices, collector)
    return collector.source("webdataset", f"the archives {pattern}", _read)


def _read(row: Row) -> bytes:
    assert isinstance(row.place, tuple)
    path, offset, size = row.place
    with open(path, "rb") as file:
        return _part(file, offset, size)


def _part(file, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _archives(pattern: str) -> list[Path]:
    given = Path(pattern)
    if given.is_dir():
        found = [p for p in given.iterdir() if p.name.endswith((".tar", *_COMPRESSED))]
    elif given.is_file():
        found = [given]
    else:
        found = [Path(name) for name in glob.glob(pattern)]
    if not found:
        raise DataError(f"{pattern} is no tar archive, and no folder or pattern of archives.")
    for path in found:
        if path.name.endswith(_COMPRESSED):
            raise DataError(
                f"{path} is compressed, and images are read from their place in the archive. "
                "Decompress it to .tar; the images in it are compressed already."
            )
    return sorted(found, key=lambda path: natural_key(path.name))


def _examples(path: Path, collector: Collector) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and files by ending of every example of an archive."""
    key = ""
    members: dict[str, tarfile.TarInfo] = {}
    for member in _members(path, collector):
        name = text_of(member.name.removeprefix("./"))
        folder, _, base = name.rpartition("/")
        if base.startswith(".") or "." not in base:
            collector.note(UNUSED, f"{path}, {name}", "has no name with an ending")
            continue
        first, _, ending = base.partition(".")
        own, ending = f"{folder}/{first}" if folder else first, f".{ending.lower()}"
        if own != key and members:
            yield key, members
            members = {}
        key = own
        if ending in members:
            collector.note(DUPLICATE, f"{path}, {name}", "is in the archive twice")
        else:
            members[ending] = member
    if members:
        yield key, members


def _members(path: Path, collector: Collector) -> Iterator[tarfile.TarInfo]:
    """The files in an archive."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    yield member
                elif not member.isdir():
                    collector.note(UNUSED, f"{path}, {text_of(member.name)}", "is no plain file")
            end = archive.offset
    except tarfile.TarError as error:
        raise DataError(
            f"{path} is no whole tar archive: {error}. Copy or download it again, or leave it out."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if path.stat().st_size < end + _END - 512:
        reason = "ends without its closing blocks: examples at its end may be missing"
        collector.note(UNUSED, str(path), reason, kept=True)


def _add(
    path: Path,
    key: str,
    members: dict[str, tarfile.TarInfo],
    choices: Choices,
    collector: Collector,
) -> None:
    where = f"{path}, {key}"
    images = [ending for ending in members if ending.endswith(EXTENSIONS)]
    if not images:
        listed = ", ".join(sorted(members))
        collector.note(UNUSED, where, f"no image among its files ({listed})")
        return
    for ending in images[1:]:
        collector.note(DUPLICATE, f"{where}{ending}", f"a second image beside {key}{images[0]}")
    image = members[images[0]]
    with path.open("rb") as file:
        parts = {
            ending: _part(file, member.offset_data, member.size)
            for ending, member in members.items()
            if ending in (".txt", ".json") and member.size <= _MOST_BYTES
        }
    try:
        texts = _texts(parts, choices.column)
    except ValueError as error:
        collector.note(ENCODING, where, str(error))
        return
    if texts is None:
        collector.note(MISSING, where, "no caption: neither .txt nor a text in .json")
        return
    if not texts:
        collector.note(EMPTY, where, "the caption is empty")
    if not image.size:
        collector.note(IMAGE, f"{where}{images[0]}", "is empty")
        return
    name = f"{text_of(path.name)}/{key}"
    place = (str(path), image.offset_data, image.size)
    for text in choices.among(texts, name):
        collector.add(where, Row(name, text, 0, place, image.size))


def _texts(parts: dict[str, bytes], column: str) -> list[str] | None:
    """The captions of an example; None where nothing is one.

    Raises:
      ValueError: a file is in an encoding that is not read, or no JSON.
    """
    if ".txt" in parts and not column:
        return [decode_text(parts[".txt"])]
    if ".json" not in parts:
        return None
    try:
        found = json.loads(decode_text(parts[".json"]))
    except RecursionError:
        raise ValueError("its .json is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its .json is no JSON: {error}") from None
    if not isinstance(found, dict):
        return None
    value = next((found[name] for name in ([column] if column else COLUMNS) if name in found), None)
    if isinstance(value, list):
        return [text for text in value if isinstance(text, str)]
    return [value] if isinstance(value, str) else None
