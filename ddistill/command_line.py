"""Shared by the commands beside `ddistill.main`: flag errors, and one-line endings."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ddistill.errors import CheckpointError, ConfigError, DataError, TrainingError, nearest
from ddistill.runtime.ending import answer_closed_output, answer_while_working, is_output_closed
from ddistill.text import make_streams_safe, one_line

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong command line with one line and exit status 2."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def parse_all(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parses the arguments; the error for an unknown flag names the nearest known one."""
        make_streams_safe()
        given, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(self._unknown(unknown))
        return given

    def error(self, message: str) -> NoReturn:
        """Prints `message` in one line and exits with status 2."""
        print(f"error: {one_line(message)} (--help lists what there is)", file=sys.stderr)
        sys.exit(USAGE_ERROR)

    def _unknown(self, words: Sequence[str]) -> str:
        known = [o for action in self._actions for o in action.option_strings if o.startswith("--")]
        flags = [word.partition("=")[0] for word in words if word.startswith("-")]
        if not flags:
            return f"arguments without a flag: {' '.join(words)}"
        return f"{flags[0]} is not a flag.{nearest(flags[0], known)}"


@contextlib.contextmanager
def one_line_ending(*more: type[Exception]) -> Iterator[None]:
    """Ends the process with one line on an expected error or an interruption.

    The exit status is 1 for expected errors: ddistill's own, files that cannot be read or written,
    values that a file holds, and what `more` names. It is 130 after Ctrl-C, and 141 where the
    reader of the output ends first. As a decorator it is for functions that return nothing.
    """
    expected: tuple[type[Exception], ...]
    expected = (ConfigError, DataError, CheckpointError, TrainingError, ValueError, *more)
    with answer_closed_output():
        try:
            with answer_while_working():
                yield
        except OSError as error:
            if isinstance(error, BrokenPipeError) and is_output_closed():
                raise
            where = f"{error.filename}: " if error.filename else ""
            sys.exit(f"error: {one_line(f'{where}{error.strerror or error}')}")
        except expected as error:
            sys.exit(f"error: {one_line(error)}")
