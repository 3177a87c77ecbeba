"""The score of a checkpoint, which does not depend on when a run logs and is stopped."""

import math
from collections.abc import Mapping

import numpy as np


class Score:
    """The mean of the quality metric, or of the loss, since the last regular checkpoint.

    Steps are added one by one, so that the mean does not depend on how often metrics are brought to
    the host. Where the metric was measured in no step since then, the score is the last mean.

    Args:
      metric: name of the objective's quality metric, lower is better; "" for the loss.
    """

    def __init__(self, metric: str = "") -> None:
        self._chosen_by = tuple(dict.fromkeys(name for name in (metric, "loss") if name))
        self._sums = {name: (0.0, 0) for name in self._chosen_by}
        self._last: dict[str, float] = {}

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds steps.

        Args:
          metrics: `[S]`, or `[S, K]` of many students; `ran/NAME` says at which steps NAME was
            measured, and `diverged` which students have stopped learning (their step, or 0).
        """
        for name in self._chosen_by:
            if name not in metrics:
                continue
            self._last.setdefault(name, math.nan)
            values = metrics[name]
            used = np.ones(values.shape, bool)
            for key, wanted in ((f"ran/{name}", True), ("diverged", False)):
                if key in metrics:
                    used &= (metrics[key] > 0) == wanted
            total, count = self._sums[name]
            for row, chosen in zip(values.astype(np.float64), used):
                total, count = total + float(np.sum(row[chosen])), count + int(np.sum(chosen))
            self._sums[name] = total, count

    def take(self) -> float:
        """The score of the steps so far, NaN where none was measured; the next steps begin anew."""
        for name, (total, count) in self._sums.items():
            if count:
                self._last[name] = total / count
            self._sums[name] = 0.0, 0
        return next((self._last[name] for name in self._chosen_by if name in self._last), math.nan)

    def record(self) -> dict[str, object]:
        """The values that a checkpoint keeps."""
        return {"sums": {k: list(v) for k, v in self._sums.items()}, "last": dict(self._last)}

    def restore(self, record: Mapping) -> None:
        """Goes on from a `record`."""
        given = {name: (total, count) for name, (total, count) in record["sums"].items()}
        self._sums = {**{name: (0.0, 0) for name in self._chosen_by}, **given}
        self._last = dict(record["last"])
