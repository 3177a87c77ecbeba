"""Rows of parquet files by number; row groups are read on use and kept up to a limit."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddistill.data.parquet_columns import Columns, choose_columns
from ddistill.data.scan import File
from ddistill.errors import DataError
from ddistill.interop.file_kinds import why_unusable
from ddistill.text import printable


class Rows:
    """The rows of some files, one file after the other; safe between threads.

    Args:
      root: the folder that the paths of the files start from.
      files: at least one.
      image_column, label_column: see `ParquetSettings`.
      limit_mb: MiB of encoded images that are kept in memory.

    Raises:
      ConfigError, DataError: a file cannot be read, has other columns than the first one, or see
        `choose_columns`.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[File],
        image_column: str,
        label_column: str,
        limit_mb: float,
    ):
        self._paths = [root / file.path for file in files]
        self._names = [printable(file.name) for file in files]
        footers = [_footer(path) for path in self._paths]
        found = [
            choose_columns(schema, image_column, label_column, str(path))
            for path, (schema, _) in zip(self._paths, footers)
        ]
        for path, columns in zip(self._paths, found):
            if columns != found[0]:
                raise DataError(
                    f"{path} has other columns or classes than {self._paths[0].name}: {columns} "
                    f"and {found[0]}. Leave only the files of one set there."
                )
        self.columns: Columns = found[0]
        # Of each row group: its file, its number there, and its first row, in all and in the file.
        self._groups = [(f, g) for f, (_, sizes) in enumerate(footers) for g in range(len(sizes))]
        sizes = [size for _, own in footers for size in own]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        rows = [sum(own) for _, own in footers]
        self._file_starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._room, self._lock = int(limit_mb * 2**20), threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, row: int) -> str:
        """A row in messages."""
        file = int(np.searchsorted(self._file_starts, row, "right")) - 1
        return f"Row {row - self._file_starts[file]} of {self._names[file]}"

    def values(self, column: str) -> list[object]:
        """A whole column.

        Raises:
          DataError: it cannot be read.
        """
        found: list[object] = []
        for path in self._paths:
            found += _read(path, None, column).to_pylist()
        return found

    def image(self, row: int) -> bytes:
        """The encoded image of a row.

        Raises:
          DataError: the row has none, or its row group cannot be read.
        """
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        value = self._group(group)[row - int(self._starts[group])].as_py()
        given = value.get("bytes") if isinstance(value, dict) else value
        if given:
            return given
        path = value.get("path") if isinstance(value, dict) else None
        holds = f"only the path {path!r}" if path else "nothing"
        raise DataError(
            f"{self.name(row)} has no image: '{printable(self.columns.image)}' holds {holds}. "
            "Write the set with the bytes of its images, or set data.on_bad_image='skip' to leave "
            "such rows out."
        )

    def _group(self, number: int) -> Any:
        """The images of a row group, a `pyarrow.ChunkedArray`."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            file, inside = self._groups[number]
            found = _read(self._paths[file], inside, self.columns.image)
            self._kept[number] = found
            self._room -= found.nbytes
            while self._room < 0 and len(self._kept) > 1:
                self._room += self._kept.popitem(last=False)[1].nbytes
            return found


def _footer(path: Path) -> tuple[Any, list[int]]:
    """The schema of a file, and the rows of each of its row groups."""
    import pyarrow
    from pyarrow import parquet

    try:
        if reason := why_unusable(path):
            raise DataError(f"{path} {reason}.")
        with parquet.ParquetFile(path) as file:
            found = file.metadata
            sizes = [found.row_group(g).num_rows for g in range(found.num_row_groups)]
            return file.schema_arrow, sizes
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, "", error) from error


def _read(path: Path, group: int | None, column: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if group is None:
                return file.read(columns=[column]).column(column)
            return file.read_row_group(group, columns=[column]).column(column)
    except (pyarrow.ArrowException, OSError) as error:
        part = f", column '{printable(column)}'" + ("" if group is None else f" of group {group}")
        raise _damaged(path, part, error) from error


def _damaged(path: Path, part: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", "") or " ".join(str(error).split())
    return DataError(f"{path}{part} cannot be read as parquet: {reason[:200]}. Copy it again.")
