"""What a run tells its user while it works: a progress bar, jsonl and TensorBoard events."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ddistill.runtime.ending import silence_output
from ddistill.runtime.files import DamagedFile, parse_object, write_text
from ddistill.text import printable
from ddistill.training.hosts import is_first

_SECONDS_BETWEEN_LINES = 15.0


@dataclass
class Clock:
    """Where the time of a stage went, in seconds; carried over from checkpoint to checkpoint."""

    train: float = 0.0
    compile: float = 0.0
    wait: float = 0.0


class _Console(Console):
    """A console that falls silent when its reader ends, as `tee` does at a Ctrl-C.

    rich ends the program there, in the middle of a step and without a checkpoint.
    """

    def on_broken_pipe(self) -> None:
        """Writes nothing from now on."""
        self.quiet = True
        silence_output()


class Reporter:
    """Console output of a run: one bar on a terminal, a line now and then elsewhere.

    Of several processes the first one speaks.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or _Console(soft_wrap=True, highlight=False, quiet=not is_first())
        self._progress: Progress | None = None
        self._task: Any = None
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """Prints one line above the progress bar."""
        self.console.print(printable(text, keep="\n"), markup=False, emoji=False)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """Starts a bar of `total` steps, of which `done` are already done."""
        self._last_line = time.monotonic()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[text]}", markup=False),
                console=self.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                printable(title), total=total, completed=done, text=""
            )
        else:
            self.say(f"{title}: step {done} of {total}")
        self._title, self._total = title, total

    def advance(self, done: int, text: str) -> None:
        """Moves the bar to `done`; `text` stands at its end."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, text=printable(text))
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{self._title}: step {done} of {self._total}  {text}")

    def end(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def open_log(folder: Path, stage: str, step: int, tensorboard: bool) -> "MetricsLog | NoLog":
    """The metrics of a stage, written by the first process of a run alone."""
    return MetricsLog(folder, stage, step, tensorboard) if is_first() else NoLog()


class NoLog:
    """Takes the metrics of a process that writes none."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class MetricsLog:
    """`metrics.jsonl` of a stage and, where tensorboardX is installed, its events.

    Lines after `step` are dropped on opening, so that a stage that went back to a checkpoint leaves
    every step once.
    """

    def __init__(self, folder: Path, stage: str, step: int, tensorboard: bool):
        self.path = folder / "metrics.jsonl"
        self._stage = stage
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._writer = _tensorboard_writer(folder / "tensorboard") if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line and flushes it."""
        row = {"stage": self._stage, "step": step, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{self._stage}/{name}", value, step)

    def sync(self) -> None:
        """Waits until the lines are on disk, or in the bucket that is mounted as one."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
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


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
