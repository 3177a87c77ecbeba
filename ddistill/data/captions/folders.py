"""Folders of images: captions in text files or tables beside them, or made of the class folders."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ddistill.data.captions.choices import COLUMNS, Choices
from ddistill.data.captions.rows import (
    DUPLICATE,
    EMPTY,
    ENCODING,
    MISSING,
    UNUSED,
    CaptionSource,
    Collector,
    Row,
)
from ddistill.data.captions.texts import decode_text
from ddistill.data.decode import EXTENSIONS
from ddistill.data.metadata import TABLES, find_tables, image_name, table_lines
from ddistill.data.names import in_order, text_of
from ddistill.data.scan import File, Scan, Wanted, scan
from ddistill.data.wrappers import Part, unwrap
from ddistill.errors import ConfigError, DataError, nearest
from ddistill.text import printable

_TEXT = ".txt"
_IGNORE = "choose the captions 'txt' or 'template' to read the folder without it"
_READ = Wanted((*EXTENSIONS, _TEXT), "images and captions", "")


def read_folder(root: Path, choices: Choices) -> CaptionSource:
    """The captioned images of a folder, in the order of their paths.

    Captions are the columns of metadata.jsonl or metadata.csv (Hugging Face's imagefolder), the
    files NAME.txt beside NAME.jpg, or a template filled with the name of the class folder.

    Raises:
      ConfigError: there is no such column, or class folders lack a template.
      DataError: the folder is missing or holds no captioned image, or a table is damaged.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder of images.")
    collector, found = Collector(choices.markup), scan(root, _READ)
    images = [f for f in found.files if not f.name.lower().endswith(_TEXT)]
    if not images:
        raise DataError(f"{root} holds no images. Images that are read: {', '.join(EXTENSIONS)}.")
    files = _distinct(images, collector)
    texts = {f.name: f for f in found.files if f.name.lower().endswith(_TEXT)}
    tabled = choices.captions in ("auto", "metadata")
    tables = find_tables(root, images, _IGNORE) if tabled else []
    kind = _kind(root, files, tables, texts, choices)
    class_names: tuple[str, ...] = ("captions",)
    content = lambda row: os.path.join(root, str(row.place))  # noqa: E731
    if kind == "metadata":
        _from_tables(root, files, tables, choices, collector)
    elif kind == "txt":
        _from_texts(root, files, texts, collector)
    else:
        part = unwrap(Part(root, list(files)))[0]
        content = lambda row: os.path.join(part.root, str(row.place))  # noqa: E731
        class_names = _from_classes(part, choices.template, collector)
    if kind != "txt" and texts:
        collector.note(UNUSED, str(root), f"not read: {len(texts)} {_TEXT}")
    found.tables.update(tables)
    _note_unread(root, found, collector)
    return collector.source(kind, f"the folder {root}", content, class_names)


def _note_unread(root: Path, found: Scan, collector: Collector) -> None:
    """Files that are neither images nor captions, by ending, and folders without images."""
    for words in found.left_out():
        collector.note(UNUSED, str(root), f"not read: {words}")


def _distinct(images: Sequence[File], collector: Collector) -> list[File]:
    """The images without those whose name another one has after its letters are composed."""
    seen: dict[str, File] = {}
    for file in images:
        if file.name in seen:
            collector.note(DUPLICATE, file.path, f"has the same name as {seen[file.name].path!r}")
        else:
            seen[file.name] = file
    return list(seen.values())


def _kind(
    root: Path,
    files: Sequence[File],
    tables: Sequence[Path],
    texts: Mapping[str, File],
    choices: Choices,
) -> str:
    """Where the captions of a folder are: "metadata", "txt" or "template"."""
    beside = any(_caption_file(file.name) in texts for file in files)
    there = {"metadata": bool(tables), "txt": beside, "template": bool(choices.template)}
    if choices.captions != "auto":
        if not there[choices.captions]:
            needs = {
                "metadata": f"a table {TABLES[0]} or {TABLES[1]}",
                "txt": f"files NAME{_TEXT} beside the images",
                "template": "a template such as 'a photo of a {}'",
            }[choices.captions]
            raise ConfigError(f"captions={choices.captions!r} needs {needs}, and {root} has none.")
        return choices.captions
    given = [kind for kind, has in there.items() if has]
    if len(given) > 1:
        raise ConfigError(
            f"{root} has captions of several kinds. Set captions to one of {', '.join(given)}."
        )
    if not given:
        raise ConfigError(
            f"{root} has no captions: neither {TABLES[0]} nor files NAME{_TEXT} beside the images. "
            "Give a template such as 'a photo of a {}' to make captions of the names of its "
            "folders."
        )
    return given[0]


def _caption_file(name: str) -> str:
    return f"{name.rpartition('.')[0]}{_TEXT}"


# ------------------------------------------------------------------------------------ text files


def _from_texts(
    root: Path, files: Sequence[File], texts: Mapping[str, File], collector: Collector
) -> None:
    used: dict[str, str] = {}
    for file in files:
        name = _caption_file(file.name)
        where = str(root / file.path)
        if name in used:
            reason = f"shares its caption with {used[name]}, which is used"
            collector.note(DUPLICATE, where, reason)
        elif name not in texts:
            collector.note(MISSING, where, f"no caption {printable(name)} beside it")
        else:
            used[name] = file.name
            path = root / texts[name].path
            try:
                row = Row(file.name, decode_text(path.read_bytes()), 0, file.path, file.size)
                collector.add(str(path), row)
            except ValueError as error:
                collector.note(ENCODING, str(path), str(error))
            except OSError as error:
                collector.note(MISSING, str(path), f"cannot be read: {error.strerror}")
    for name in sorted(texts.keys() - used.keys()):
        collector.note(UNUSED, str(root / texts[name].path), "no image of this name beside it")


# ------------------------------------------------------------------------------------------ tables


def _from_tables(
    root: Path,
    files: Sequence[File],
    tables: Sequence[Path],
    choices: Choices,
    collector: Collector,
) -> None:
    found, columns = _table_rows(root, files, tables, collector)
    column = _column(root, columns, choices)
    for file in files:
        if file.name not in found:
            collector.note(MISSING, str(root / file.path), "no row in the metadata")
            continue
        where, values = found[file.name]
        where = f"{where} ({printable(file.name)})"
        value = values.get(column)
        given = value if isinstance(value, list) else [value]
        texts = [text for text in given if isinstance(text, str)]
        if not value:
            collector.note(EMPTY, where, f"no text in {column!r}")
        elif len(texts) < len(given):
            collector.note(MISSING, where, f"{column!r} is a {type(value).__name__}, and no text")
        else:
            for text in choices.among(texts, file.name):
                collector.add(where, Row(file.name, text, 0, file.path, file.size))


def _table_rows(
    root: Path, files: Sequence[File], tables: Sequence[Path], collector: Collector
) -> tuple[dict[str, tuple[str, Mapping[str, object]]], dict[str, None]]:
    """By image its place in a table and its values, and the names of all columns."""
    names = {file.name for file in files}
    rows: dict[str, tuple[str, Mapping[str, object]]] = {}
    columns: dict[str, None] = {}
    for path in tables:
        folder = text_of(path.parent.relative_to(root).as_posix())
        for number, values in table_lines(path, _IGNORE):
            where = f"{path}, line {number}"
            columns |= dict.fromkeys(values)
            try:
                name = image_name(values, folder, where)
            except DataError:
                collector.note(UNUSED, where, "names no image below the folder of the table")
                continue
            if name in rows:
                collector.note(DUPLICATE, where, f"the image {name} is in {rows[name][0]} too")
            elif name not in names:
                collector.note(UNUSED, where, f"{name} is no image of {root}")
            else:
                rows[name] = (where, values)
    return rows, columns


def _column(root: Path, columns: Mapping[str, None], choices: Choices) -> str:
    """The column of the captions."""
    if choices.column:
        if choices.column not in columns:
            raise ConfigError(
                f"column={choices.column!r} is no column of the metadata of {root}."
                f"{nearest(choices.column, columns)} Allowed: {', '.join(map(printable, columns))}."
            )
        return choices.column
    usual = [name for name in COLUMNS if name in columns]
    if not usual:
        raise ConfigError(
            f"The metadata of {root} have none of the columns {', '.join(COLUMNS)}. Set column to "
            f"the one with the captions: {', '.join(map(printable, columns))}."
        )
    return usual[0]


# ----------------------------------------------------------------------------------- class folders


def _from_classes(part: Part, template: str, collector: Collector) -> tuple[str, ...]:
    """Rows with the caption of their class folder; returns the names of the classes."""
    classes = in_order(part.labels - {""})
    numbers = {name: i for i, name in enumerate(classes)}
    for file in part.files:
        where = str(part.root / file.path)
        if not file.label:
            collector.note(MISSING, where, "lies in no class folder")
            continue
        words = file.label.replace("_", " ")
        row = Row(
            file.name, template.replace("{}", words), numbers[file.label], file.path, file.size
        )
        collector.add(where, row)
    return tuple(map(printable, classes)) or ("captions",)
