"""Stopping cleanly: SIGTERM, SIGINT and SIGUSR1 ask for a stop that the loops poll."""

import signal
from types import FrameType


class Interrupted(Exception):
    """Raised by a loop that has saved its state because a stop was asked for."""


class StopRequest:
    """A flag that signals set. A second SIGINT stops at once.

    Use as a context manager: handlers are installed on entry and put back on exit.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopRequest":
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def check(self, where: str) -> None:
        """Raises `Interrupted` if a stop was asked for; for loops that have nothing to save."""
        if self:
            raise Interrupted(where)
