"""The end of interrupted programs: one line, and the exit status that shells expect.

Imports nothing that takes long, because a user may press Ctrl-C while the rest is imported.
"""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from types import FrameType

# 128 and the number of the signal, as shells have it.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
CLOSED = 128 + signal.SIGPIPE


def tell(text: str) -> None:
    """Writes a line to stderr at once, past all buffers; safe in a signal handler."""
    begin = "\n" if os.isatty(2) else ""  # below "^C" and a progress bar
    with contextlib.suppress(OSError):
        os.write(2, f"{begin}{text}\n".encode("utf-8", "backslashreplace"))


def is_output_closed() -> bool:
    """Whether the reader of stdout has ended; other pipes of a program may break as well."""
    try:
        number = sys.stdout.fileno()
        looking = select.poll()
        looking.register(number, 0)  # POLLHUP and POLLERR are always reported
        found = looking.poll(0)
    except (AttributeError, OSError, ValueError):  # no stdout, or one without a descriptor
        return False
    return any(what & (select.POLLERR | select.POLLHUP) for _, what in found)


def silence_output() -> None:
    """Points stdout to the null device, because its reader, such as `head`, has ended."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _destination() -> tuple[int, int] | None:
    """Device and inode of the file behind stdout; None for a stdout without a descriptor."""
    try:
        status = os.fstat(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def answer_closed_output() -> Iterator[None]:
    """Ends a program without a traceback, with status 141, if the reader of its output has ended.

    stdout is flushed here, because Python prints an error if that fails at exit. An exit status
    other than 0 is kept. A `BrokenPipeError` of another pipe is raised again.
    """
    before = _destination()
    ended: SystemExit | None = None
    try:
        try:
            yield
        except SystemExit as error:
            ended = error
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        if not is_output_closed():
            raise
        silence_output()
    silenced = _destination() != before
    if silenced and (ended is None or not ended.code):
        raise SystemExit(CLOSED)
    if ended is not None:
        raise ended


def leave_now(status: int) -> None:
    """Ends the process from any thread, without any cleanup."""
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
    os._exit(status)


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """A handler of SIGINT for programs that have nothing to save yet.

    A KeyboardInterrupt would not do: raised while a library of C++ imports Python modules, it ends
    the process with a core dump.
    """
    del number, frame
    tell("Stopped by SIGINT.")
    leave_now(INTERRUPTED)


def answer_while_importing() -> None:
    """Turns Ctrl-C into one line and exit status 130 from here on, unless SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)


@contextlib.contextmanager
def answer_while_working() -> Iterator[None]:
    """The same by an exception, so that files that were being written are removed first."""
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        tell("Stopped by SIGINT.")
        raise SystemExit(INTERRUPTED) from None
