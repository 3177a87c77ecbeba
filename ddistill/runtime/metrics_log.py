"""The metrics of a stage on disk, as JSON lines."""

import json
import os
from pathlib import Path

from ddistill.runtime.files import DamagedFile, parse_object, write_text
from ddistill.runtime.hosts import is_first
from ddistill.typing import JsonRecord


def open_log(folder: Path, stage: str, step: int) -> "MetricsLog | NoLog":
    """The metrics of a stage, written by the first process of a run alone."""
    return MetricsLog(folder, stage, step) if is_first() else NoLog()


class NoLog:
    """Takes the metrics of a process that writes none."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class MetricsLog:
    """`metrics.jsonl` of a stage.

    Lines after `step` are dropped on opening, so that a stage that went back to a checkpoint leaves
    every step once.
    """

    def __init__(self, folder: Path, stage: str, step: int):
        self.path = folder / "metrics.jsonl"
        self._stage = stage
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and flushes it."""
        row = {"stage": self._stage, "step": step, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Waits until the lines are on disk, or in the bucket that is mounted as one."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[JsonRecord]:
    """The whole lines of a metrics file; what a kill or a power cut damaged is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_object(line, path)
        except DamagedFile:
            continue
        if isinstance(row.get("step"), int):
            rows.append(row)
    return rows
