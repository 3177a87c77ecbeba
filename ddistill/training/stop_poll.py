"""Polls for a request to stop, on one process or on several."""

from ddistill.runtime.hosts import agree, from_first, several
from ddistill.runtime.interrupt import StopRequest

# On several hosts: the longest time between a signal and the step at which all processes know it.
_SECONDS_BETWEEN_POLLS = 3.0


class StopPoll:
    """Whether any process was requested to stop.

    Agreeing with other processes waits for the devices. With several processes only every n-th call
    asks them, and n follows the measured pace of the training.
    """

    def __init__(self, stop: StopRequest):
        self._stop = stop
        self._every, self._skipped = 1, 0

    def __call__(self) -> bool:
        """Polls; every process has to call it equally often."""
        if not several():
            return bool(self._stop)
        self._skipped += 1
        if self._skipped < self._every:
            return False
        self._skipped = 0
        return agree(bool(self._stop))

    def set_pace(self, calls: int, seconds: float) -> None:
        """Tells how many calls were made in how many seconds of training."""
        self._every = from_first(lambda: max(1, int(_SECONDS_BETWEEN_POLLS * calls / seconds)))
