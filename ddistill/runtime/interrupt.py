"""Clean stops: signals set a flag that the loops poll, and print a line at once."""

import os
import signal
import threading
from types import FrameType

from ddistill.runtime.ending import INTERRUPTED, TERMINATED, leave_now, tell


class Interrupted(Exception):
    """Raised by a loop that has saved its state after a stop signal."""


class StopRequest:
    """A flag that SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 set. A second SIGINT stops at once.

    Schedulers send SIGUSR1 or SIGUSR2 ahead of a time limit. A second one of these or of SIGTERM
    changes nothing, because schedulers may send a signal twice.

    Use as a context manager: handlers are installed on entry and put back on exit. A line on stderr
    answers each signal within milliseconds, also while the main thread compiles and Python's own
    handlers have to wait: Python writes the number of a signal to a pipe at once, and a thread
    reads it.

    Outside of the main thread, where Python allows no handlers, only `request` sets the flag.

    Args:
      speaks: whether signals print a line; of several processes only the first should.
      exits: whether a second SIGINT ends the process. False raises `KeyboardInterrupt` instead, for
        a process that is not the program's own, such as a notebook.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, speaks: bool = True, exits: bool = True) -> None:
        self.name = ""
        self._speaks, self._exits = speaks, exits
        self._interrupts = 0
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    @property
    def status(self) -> int:
        """The exit status of a run that was stopped: 130 after SIGINT, 143 after the others.

        It is 143 too where another process of the run had the signal.
        """
        return INTERRUPTED if self.name == "SIGINT" else TERMINATED

    def __enter__(self) -> "StopRequest":
        self._listens = threading.current_thread() is threading.main_thread()
        if not self._listens:
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        self._woken_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="ddistill-stop", daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._listens:
            return
        signal.set_wakeup_fd(self._woken_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.write(self._write, b"\0")
        self._listener.join()
        os.close(self._read)
        os.close(self._write)

    def request(self, name: str) -> None:
        """Requests a stop from within the program; `name` says who asked, for messages."""
        self.name = self.name or name

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.request(signal.Signals(number).name)
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1 and not self._exits:
            raise KeyboardInterrupt

    def _listen(self) -> None:
        """Reads signal numbers from the pipe and prints a line for each, until it reads 0."""
        first = True
        while True:
            for number in os.read(self._read, 64):
                if not number:
                    return
                if number in self._SIGNALS:
                    self._answer(number, first)
                    first = False

    def _answer(self, number: int, first: bool) -> None:
        name = signal.Signals(number).name
        if first:
            self.request(name)
            again = "again" if number == signal.SIGINT else "Ctrl-C"
            self._tell(f"{name}: stopping after this step; {again} to stop now")
        elif number == signal.SIGINT and self._exits:
            self._tell(f"{name}: stopped at once; the last complete checkpoint is kept")
            leave_now(INTERRUPTED)

    def _tell(self, text: str) -> None:
        if self._speaks:
            tell(text)

    def check(self, where: str) -> None:
        """Raises `Interrupted` after a stop signal; for loops that have nothing to save."""
        if self:
            raise Interrupted(where)
