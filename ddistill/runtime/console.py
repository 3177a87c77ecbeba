"""The console output of a run: a progress bar and lines of text."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ddistill.runtime.ending import silence_output
from ddistill.runtime.hosts import is_first
from ddistill.text import printable

_SECONDS_BETWEEN_LINES = 15.0


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
        self._task = TaskID(0)
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
