"""The metrics of a log interval, and how long its steps took."""

import time
from dataclasses import dataclass, field

import jax


@dataclass
class MetricsBuffer:
    """Metrics of the steps since the last log line; they stay on the device until it is written.

    Attributes:
      rows: first step, number of steps and metrics of every dispatch.
      since: when the interval began, moved on by the time of dispatches that compiled.
      wait: seconds of waiting for data.
      timed: number of steps that took the time since `since`: all but the steps of dispatches that
        compiled, whose time is left out.
    """

    rows: list[tuple[int, int, dict[str, jax.Array]]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    wait: float = 0.0
    timed: int = 0

    def add(self, step: int, count: int, metrics: dict[str, jax.Array], compiled: float) -> None:
        """Adds the metrics of one dispatch.

        Args:
          step: the step before the first one.
          count: number of steps.
          metrics: `[count, ...]` by name.
          compiled: seconds that the dispatch took if it compiled, else 0.
        """
        self.rows.append((step, count, metrics))
        self.since += compiled
        self.timed += 0 if compiled else count

    def seconds(self) -> float:
        """Duration of the timed steps so far."""
        return max(1e-9, time.perf_counter() - self.since)
