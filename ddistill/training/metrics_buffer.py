"""The metrics of a log interval: kept on the device, then checked and averaged on the host."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import numpy as np

from ddistill.runtime.sharding import to_host


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

    def to_host(self) -> dict[str, np.ndarray]:
        """By name, `[S]` or `[S, K]`: the metrics of all steps; waits for the devices."""
        rows = to_host([metrics for _, _, metrics in self.rows])
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class NotFinite:
    """The first step at which a metric is not finite.

    Attributes:
      step: its number.
      names: the metrics, sorted.
      student: the first student with such a value of the first metric; 0 where there is one.
      value: that value.
    """

    step: int
    names: tuple[str, ...]
    student: int
    value: float


def find_not_finite(begin: int, metrics: Mapping[str, np.ndarray]) -> NotFinite | None:
    """The first step at which a metric is not finite, or None.

    Args:
      begin: the step before the first one.
      metrics: by name, `[S]` or `[S, K]`.
    """
    finite = {n: np.isfinite(v.reshape(len(v), -1)).all(axis=1) for n, v in metrics.items()}
    bad = np.flatnonzero(~np.all(list(finite.values()), axis=0))
    if not len(bad):
        return None
    offset = int(bad[0])
    names = tuple(sorted(name for name, good in finite.items() if not good[offset]))
    values = np.atleast_1d(metrics[names[0]][offset])
    student = int(np.argmin(np.isfinite(values)))
    return NotFinite(begin + offset + 1, names, student, float(values[student]))


def mean_metrics(
    metrics: Mapping[str, np.ndarray],
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Means over the steps of an interval.

    A metric of an update is averaged over the steps at which the update ran, and over the students
    that have not diverged. A metric without any such step is left out.

    Args:
      metrics: by name, `[S]` or `[S, K]`; `ran/NAME` is positive at the steps at which NAME was
        measured, `diverged` is the step at which a student diverged, or 0.

    Returns:
      Means over all students; and by student, its own means, where `metrics` has `diverged`.
    """
    measured = {n: v for n, v in metrics.items() if n != "diverged" and not _is_count(n, metrics)}
    diverged = metrics.get("diverged")
    steps = len(next(iter(measured.values())))
    learns = np.ones(steps, bool) if diverged is None else diverged == 0

    def means(chosen: tuple[slice | int, ...]) -> dict[str, float]:
        found = {}
        for name, values in measured.items():
            used = learns[chosen]
            if f"ran/{name}" in metrics:
                used = used & (metrics[f"ran/{name}"][chosen] > 0)
            if used.any():
                found[name] = float(np.mean(values[chosen][used]))
        return found

    students = 0 if diverged is None else diverged.shape[1]
    return means((slice(None),)), [means((slice(None), k)) for k in range(students)]


def _is_count(name: str, metrics: Mapping[str, np.ndarray]) -> bool:
    return name.startswith("ran/") and name.removeprefix("ran/") in metrics
