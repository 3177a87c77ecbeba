"""Tables beside images: metadata.jsonl and metadata.csv of Hugging Face's imagefolder.

Every row names an image in `file_name`, relative to the folder of the table. Its other columns
describe the image: a class, a caption.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ddistill.data.names import text_of
from ddistill.data.scan import File
from ddistill.errors import ConfigError, DataError, nearest
from ddistill.interop.file_kinds import why_unusable
from ddistill.text import printable

FILE_NAME = "file_name"
TABLES = ("metadata.jsonl", "metadata.csv")
_OTHER_FORM = "metadata.parquet"
_IGNORE = "set data.metadata='none' to read the folder without it"


class Row(NamedTuple):
    """One row: its place in messages, and its values by column."""

    where: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Metadata:
    """The tables of a folder.

    Attributes:
      tables: their paths.
      rows: by the name of an image, as in `File.name`.
      columns: all columns but file_name, in order.
    """

    tables: tuple[Path, ...]
    rows: Mapping[str, Row]
    columns: tuple[str, ...]

    def values(self, files: Sequence[File], column: str) -> list[object]:
        """The values of a column for some images; None where a row does not have it."""
        return [self.rows[file.name].values.get(column) for file in files]

    def name(self, file: File) -> str:
        """The row of an image in messages."""
        return f"{self.rows[file.name].where} ({printable(file.name)})"

    def texts(self, files: Sequence[File], without: str) -> dict[str, tuple[str, ...]]:
        """The columns that hold nothing but texts, by name, apart from one."""
        found = {}
        for column in self.columns:
            values = self.values(files, column)
            if column != without and all(v is None or isinstance(v, str) for v in values):
                found[column] = tuple(str(v or "") for v in values)
        return found


def find_tables(root: Path, files: Sequence[File], ignore: str = _IGNORE) -> list[Path]:
    """The tables of metadata in a folder of images and in the folders of its images.

    Args:
      root: the folder.
      files: its images.
      ignore: how a user reads the folder without tables, for messages.

    Raises:
      DataError: a folder has several, or one in a form that is not read.
    """
    folders = {""}
    for file in files:
        folder = file.path.rpartition("/")[0]
        while folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    found = []
    for folder in sorted(folders):
        here = [root / folder / name for name in TABLES if (root / folder / name).is_file()]
        if len(here) > 1:
            raise DataError(
                f"{here[0]} and {here[1].name} both describe these images. Leave one of them there,"
                f" or {ignore}."
            )
        other = root / folder / _OTHER_FORM
        if other.is_file():
            raise DataError(
                f"{other} is not read; write it as {TABLES[0]} (pandas: read_parquet, to_json with "
                f"orient='records', lines=True), or {ignore}."
            )
        found += here
    return found


def read_metadata(root: Path, tables: Sequence[Path], files: Sequence[File]) -> Metadata:
    """Reads tables of metadata.

    Args:
      root: the folder of images.
      tables: of `find_tables`.
      files: the images of the folder.

    Raises:
      DataError: a table is damaged, or a row names no image, an image outside of the folder, or
        one that another row names; the message has table and line.
    """
    images = {file.name for file in files}
    rows: dict[str, Row] = {}
    columns: dict[str, None] = {}
    for path in tables:
        folder = text_of(path.parent.relative_to(root).as_posix())
        for line, values in table_lines(path):
            where = f"{path}, line {line}"
            name = image_name(values, folder, where)
            if name in rows:
                raise DataError(
                    f"{where}: the image '{printable(name)}' is in {rows[name].where} too. Leave "
                    "one row of it."
                )
            if name not in images:
                raise DataError(
                    f"{where}: {FILE_NAME}={printable(values[FILE_NAME])!r} is no image of {root}."
                    f"{nearest(name, images) if len(images) < 5000 else ''} Add the image or "
                    f"remove the row, or {_IGNORE}."
                )
            own = {key: value for key, value in values.items() if key != FILE_NAME}
            rows[name] = Row(where, own)
            columns |= dict.fromkeys(own)
    return Metadata(tuple(tables), rows, tuple(columns))


def check_described(metadata: Metadata, files: Sequence[File]) -> None:
    """Raises `DataError` unless every image has a row."""
    without = [file.name for file in files if file.name not in metadata.rows]
    if without:
        listed = " and ".join(map(str, metadata.tables[:2]))
        raise DataError(
            f"{printable(without[0])} has no row in {listed}, as {len(without)} of {len(files)} "
            f"images. Add their rows or move these images away, or {_IGNORE}."
        )


def check_no_column(label_column: str, root: Path) -> None:
    """Raises `ConfigError` for a column of classes in a folder without a table."""
    if label_column:
        raise ConfigError(
            f"data.label_column={label_column!r} needs a table with the classes, {TABLES[0]} or "
            f"{TABLES[1]}, and {root} has none. Leave it out where sub-folders are the classes."
        )


def image_name(values: Mapping[str, object], folder: str, where: str) -> str:
    """The name of a row's image, relative to the folder of all images.

    Args:
      values: of the row.
      folder: of the table, relative to the folder of all images; "" or "." for the same.
      where: the row in messages.

    Raises:
      DataError: the row names no file, or one that is not below the folder of the table.
    """
    given = values.get(FILE_NAME)
    if not isinstance(given, str) or not given:
        raise DataError(f"{where} has no {FILE_NAME}, the name of its image. Add it, or {_IGNORE}.")
    path = PurePosixPath(folder, given)
    if "\\" in given or PurePosixPath(given).is_absolute() or ".." in path.parts:
        raise DataError(
            f"{where}: {FILE_NAME}={printable(given)!r} has to be a path below the folder of the "
            "table, with '/' between folders."
        )
    return text_of(path.as_posix())


def table_lines(path: Path, ignore: str = _IGNORE) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Number and values of every row of a table; empty lines are no rows.

    Args:
      path: the table.
      ignore: how a user reads the folder without tables, for messages.

    Raises:
      DataError: the table cannot be read, or a line is damaged.
    """
    try:
        if reason := why_unusable(path):
            raise DataError(f"{path} {reason}.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if path.suffix == ".jsonl":
        yield from _json_lines(path, text)
    else:
        yield from _csv_lines(path, text, ignore)


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is no JSON: {error}.") from None
        if not isinstance(found, dict):
            raise DataError(
                f"{path}, line {number} holds a {type(found).__name__}; an object is needed."
            )
        yield number, found


def _csv_lines(path: Path, text: str, ignore: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if FILE_NAME not in header or len(set(header)) < len(header):
            raise DataError(
                f"{path}: the first line needs the names of all columns, {FILE_NAME} among them, "
                f"each once; it has {', '.join(map(printable, header)) or 'none'}. Correct it, or "
                f"{ignore}."
            )
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num} has {len(row)} values for the {len(header)} "
                    'columns. Put text with commas into double quotes: "...".'
                )
            yield reader.line_num, dict(zip(header, row))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is no CSV: {error}.") from None
