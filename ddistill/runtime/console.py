"""The console output of a run: a progress bar and lines of text."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)

from ddistill.runtime.ending import silence_output
from ddistill.runtime.hosts import is_first
from ddistill.text import printable

_SECONDS_BETWEEN_LINES = 15.0


def duration(seconds: float) -> str:
    """A duration to two units: "40 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


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
        self._after: float | None = None
        self._first: tuple[float, int] | None = None

    def say(self, text: str) -> None:
        """Prints one line above the progress bar."""
        self.console.print(printable(text, keep="\n"), markup=False, emoji=False)

    def begin(self, title: str, total: int, done: int = 0, after: float | None = None) -> None:
        """Starts a bar.

        Args:
          title: what is done.
          total: number of steps.
          done: number of steps that are already done.
          after: seconds that further bars of the same kind will take; None if unknown.
        """
        self._last_line = time.monotonic()
        self._after, self._first = after, None
        # A notebook shows a bar only with another package; lines are shown everywhere.
        if self.console.is_terminal and not self.console.is_jupyter:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                TextColumn("{task.fields[text]}", markup=False),
                console=self.console,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                printable(title), total=total, completed=done, text="", left=""
            )
        else:
            self.say(f"{title}: step {done} of {total}")
        self._title, self._total = title, total

    def advance(self, done: int, text: str, left: float | None = None) -> None:
        """Moves the bar to `done`.

        Args:
          done: number of steps that are done.
          text: stands at the end of the bar.
          left: seconds to the end of this bar; None for an estimate from the pace since the first
            call, which leaves out what comes before, such as a compilation.
        """
        left = self._estimate(done) if left is None else left
        shown = "" if left is None else f"{duration(left)} left"
        if left is not None and self._after:
            shown += f" ({duration(left + self._after)} for all stages)"
        if self._progress is not None:
            self._progress.update(self._task, completed=done, text=printable(text), left=shown)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            parts = (f"{self._title}: step {done} of {self._total}", text, shown)
            self.say("  ".join(part for part in parts if part))

    def _estimate(self, done: int) -> float | None:
        now = time.monotonic()
        if self._first is None or done <= self._first[1]:
            self._first = self._first or (now, done)
            return None
        since, before = self._first
        return (now - since) / (done - before) * (self._total - done)

    def end(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
