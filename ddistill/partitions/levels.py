"""Partitions by ranges of noise levels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from ddistill.conditions import Condition
from ddistill.errors import ConfigError, check_choice
from ddistill.partitions.base import Partition
from ddistill.schedules import Level, Schedule

TIMESTEP_SPACINGS = ("index", "log_snr")


def angle(level: Level | Schedule) -> Float[Array, "*B"]:
    """arctan(sigma / alpha) in [0, pi/2]: the noisiness of a level, increasing with its index.

    It is finite at both ends and no matter how a schedule scales its levels (arXiv 2202.00512,
    appendix D). In numpy for numpy's levels, so that planning compiles nothing.
    """
    xp = jnp if isinstance(level.sigma, jax.Array) else np
    return xp.arctan2(level.sigma, level.alpha)


@struct.dataclass
class TimestepPartition(Partition):
    """Contiguous ranges of noise levels; student 0 owns the cleanest (arXiv 2410.04191).

    Make it with `timestep_partition`.

    Attributes:
      edges: `[K-1]` increasing angles between the ranges. Each lies half-way between two levels of
        the table, so that rounding never decides who owns a level.
    """

    edges: Float[Array, " K_1"]

    @property
    def count(self) -> int:
        """K."""
        return self.edges.shape[0] + 1

    def owner(self, level: Level, cond: Condition | None = None) -> Int[Array, "*B"]:
        """The student that owns the level; `cond` is ignored."""
        del cond
        noisiness = angle(level)
        if isinstance(noisiness, jax.Array):
            return jnp.searchsorted(jnp.asarray(self.edges), noisiness).astype(jnp.int32)
        return np.searchsorted(np.asarray(self.edges), noisiness).astype(np.int32)

    def owned_levels(self, schedule: Schedule) -> Bool[np.ndarray, "K N"]:
        """Which of levels 1 .. N each student owns."""
        table = jax.tree.map(lambda x: np.asarray(x)[1:], schedule)
        owners = np.asarray(self.owner(Level(table.alpha, table.sigma, table.time)))
        return owners[None] == np.arange(self.count)[:, None]


def timestep_partition(
    schedule: Schedule, count: int, spacing: str = "index", boundaries: Sequence[int] = ()
) -> TimestepPartition:
    """Ranges of the levels 1 .. T of a table.

    Args:
      schedule: the table, `[T+1]`.
      count: K.
      spacing: "index": student k owns the levels i with floor((i - 1) K / T) = k, so that sizes
        differ by at most one; "log_snr": ranges of equal extent in log(alpha^2 / sigma^2).
      boundaries: instead of a spacing, the first level of students 1 .. K-1.

    Raises:
      ConfigError: an unknown spacing, more students than levels, boundaries that do not increase
        or leave a student nothing, or a boundary between two levels of the same noise.
    """
    check_choice("students.spacing", spacing, TIMESTEP_SPACINGS)
    levels = schedule.num_steps
    if not 1 <= count <= levels:
        raise ConfigError(
            f"students.count={count}, but there are {levels} noise levels to partition; "
            f"allowed: 1 to {levels}."
        )
    if len(boundaries):
        firsts = np.asarray(boundaries)
    elif spacing == "index":
        firsts = -(-np.arange(1, count) * levels // count) + 1
    else:
        firsts = _equal_log_snr(schedule, count)
    return TimestepPartition(jax.device_put(_edges(schedule, firsts, count)))


def _equal_log_snr(schedule: Schedule, count: int) -> np.ndarray:
    """First levels of students 1 .. K-1, by equal extents in log-SNR of levels with an image."""
    alpha, sigma = (np.asarray(x[1:], np.float64) for x in (schedule.alpha, schedule.sigma))
    value = 2.0 * np.log(np.maximum(alpha, 1e-300) / sigma)
    wanted = np.linspace(value[0], value[alpha > 0][-1], count + 1)[1:-1]
    return np.array([np.argmax(value <= w) for w in wanted], int) + 1


def _edges(schedule: Schedule, firsts: np.ndarray, count: int) -> np.ndarray:
    """Checks the first levels of students 1 .. K-1 and turns them into angles between levels."""
    levels = schedule.num_steps
    steps = np.diff([1, *firsts, levels + 1])
    if len(firsts) != count - 1 or np.any(steps < 1):
        raise ConfigError(
            f"students.boundaries={firsts.tolist()} for {count} students of levels 1 to {levels}: "
            f"{count - 1} increasing levels from 2 to {levels} are needed, the first of each "
            "student but the cleanest one's."
        )
    alpha, sigma = (np.asarray(x, np.float64) for x in (schedule.alpha, schedule.sigma))
    noisiness = np.arctan2(sigma, alpha)
    below, above = noisiness[firsts - 1], noisiness[firsts]
    edges = (0.5 * (below + above)).astype(np.float32)
    same = ~((below.astype(np.float32) < edges) & (edges < above.astype(np.float32)))
    if np.any(same):
        at = int(firsts[np.argmax(same)])
        raise ConfigError(
            f"students: levels {at - 1} and {at} have the same noise, so that no boundary can "
            "separate them. Set students.boundaries to other levels."
        )
    return edges
