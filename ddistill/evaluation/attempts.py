"""Parts of an evaluation or a report that may fail without the loss of the others."""

from collections.abc import Callable
from typing import TypeVar

from ddistill.runtime.interrupt import Interrupted
from ddistill.text import one_line

T = TypeVar("T")


class Attempts:
    """Makes parts of a report and records failures, so that a failure does not lose the results.

    Attributes:
      failed: heading and error of every part that failed.
    """

    def __init__(self) -> None:
        self.failed: list[tuple[str, str]] = []

    def __call__(self, title: str, make: Callable[[], T]) -> T | None:
        """Returns the result of `make`, or None if it fails.

        Raises:
          OSError: the disk is full or not writable.
          Interrupted: a stop was requested.
        """
        try:
            return make()
        except (OSError, Interrupted):
            raise
        except Exception as error:
            self.failed.append((title, f"{type(error).__name__}: {one_line(error)}"))
            return None
