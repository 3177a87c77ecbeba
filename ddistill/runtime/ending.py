"""How programs end that are interrupted: one line, and the exit status that shells expect.

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


class _Output:
    """Whether the reader of our output, such as `head`, has ended before we did."""

    closed = False


def is_output_closed() -> bool:
    """Whether nobody reads stdout any more; other pipes of a program may break as well."""
    try:
        number = sys.stdout.fileno()
        looking = select.poll()
        looking.register(number, 0)  # a closed end is told unasked
        found = looking.poll(0)
    except (AttributeError, OSError, ValueError):  # no stdout, or one without a descriptor
        return False
    return any(what & (select.POLLERR | select.POLLHUP) for _, what in found)


def silence_output() -> None:
    """Writes the rest of the output nowhere: its reader has seen enough."""
    _Output.closed = True
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def answer_closed_output() -> Iterator[None]:
    """Ends a program whose output nobody reads any more without a traceback, with status 141.

    What is in the buffers is written here: Python would complain of it when it ends. Another status
    than 0 stays, and so does what the program does for its files. The error of another pipe is the
    caller's.
    """
    ended: SystemExit | None = None
    try:
        try:
            yield
        except SystemExit as ending:
            ended = ending
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        if not is_output_closed():
            raise
        silence_output()
    if _Output.closed and (ended is None or not ended.code):
        raise SystemExit(CLOSED)
    if ended is not None:
        raise ended


def leave_now(status: int) -> None:
    """Ends the process from any thread, with what is on disk as it is."""
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
    """Makes a line and exit status 130 of a Ctrl-C from here on, unless SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)


@contextlib.contextmanager
def answer_while_working() -> Iterator[None]:
    """The same for a program that works: what it has begun to write is cleared away first."""
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        tell("Stopped by SIGINT.")
        raise SystemExit(INTERRUPTED) from None
