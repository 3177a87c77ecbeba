"""Many students as one: stacked parameters, who answers for what, a network that asks the owner.

K students of one shape are one pytree whose leaves have a leading axis `[K, ...]`. A `Partition`
says which of them answers for a noise level and a condition; training (what a student is shown),
sampling (whom a step asks) and evaluation all go by its `owner`, so that they cannot disagree.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction
from ddistill.errors import ConfigError, check_choice
from ddistill.schedules import Level, Schedule

TIMESTEP_SPACINGS = ("index", "log_snr")


def stack(students: Sequence[Any]) -> Any:
    """One tree with leaves `[K, ...]` from K trees of equal structure and shapes."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *students)


def unstack(stacked: Any) -> list[Any]:
    """The K trees of a stack."""
    return [take(stacked, k) for k in range(num_students(stacked))]


def take(stacked: Any, k: int | Int[Array, ""]) -> Any:
    """Student k of a stack; `k` may be traced, and then has to be in 0 .. K-1."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, keepdims=False), stacked)


def put(stacked: Any, k: int | Int[Array, ""], student: Any) -> Any:
    """The stack with `student` in place of student k."""
    return jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, k, 0), stacked, student
    )


def clone(student: Any, count: int) -> Any:
    """A stack of `count` equal students."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), student)


def num_students(stacked: Any) -> int:
    """K of a stack."""
    return jax.tree.leaves(stacked)[0].shape[0]


# ---------------------------------------------------------------------------------- partitions


class Partition:
    """Which of K students answers for which part of the task.

    Subclasses are pytrees whose boundaries are arrays: other boundaries are not another program.
    """

    @property
    def count(self) -> int:
        """K."""
        raise TypeError(f"{type(self).__name__} does not define its count.")

    def owner(self, level: Level, cond: Int[Array, " B"] | None = None) -> Int[Array, "*B"]:
        """The student that answers at a noise level for a condition, in 0 .. K-1.

        The result is a scalar where everything that it depends on is one.
        """
        raise TypeError(f"{type(self).__name__} does not define its owner.")

    def owned_levels(self, schedule: Schedule) -> Bool[np.ndarray, "K N"]:
        """Which of levels 1 .. N of a schedule each student answers for, under any condition."""
        return np.ones((self.count, schedule.num_steps), bool)

    def owned_classes(self, num_classes: int) -> Bool[np.ndarray, "K C"]:
        """Which classes each student answers for, at any level."""
        return np.ones((self.count, num_classes), bool)


def angle(level: Level | Schedule) -> Float[Array, "*B"]:
    """arctan(sigma / alpha) in [0, pi/2]: the noisiness of a level, increasing with its index.

    It is finite at both ends and no matter how a schedule scales its levels (arXiv 2202.00512,
    appendix D). In numpy for numpy's levels, so that planning compiles nothing.
    """
    xp = jnp if isinstance(level.sigma, jax.Array) else np
    return xp.arctan2(level.sigma, level.alpha)


@struct.dataclass
class TimestepPartition(Partition):
    """Contiguous ranges of noise levels; student 0 answers for the cleanest (arXiv 2410.04191).

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

    def owner(self, level: Level, cond: Any = None) -> Int[Array, "*B"]:
        """The student whose range holds the level; `cond` does not matter."""
        del cond
        noisiness = angle(level)
        if isinstance(noisiness, jax.Array):
            return jnp.searchsorted(jnp.asarray(self.edges), noisiness).astype(jnp.int32)
        return np.searchsorted(np.asarray(self.edges), noisiness).astype(np.int32)

    def owned_levels(self, schedule: Schedule) -> Bool[np.ndarray, "K N"]:
        """Which of levels 1 .. N each student answers for."""
        table = jax.tree.map(lambda x: np.asarray(x)[1:], schedule)
        owners = np.asarray(self.owner(Level(table.alpha, table.sigma, table.time)))
        return owners[None] == np.arange(self.count)[:, None]


@struct.dataclass
class ConditionPartition(Partition):
    """Classes shared out among students (arXiv 2410.23274). Make it with `condition_partition`.

    Attributes:
      owners: `[C]`, the student of each class.
      students: K.
    """

    owners: Int[Array, " C"]
    students: int = struct.field(pytree_node=False)

    @property
    def count(self) -> int:
        """K."""
        return self.students

    def owner(self, level: Level, cond: Int[Array, "*B"] | None = None) -> Int[Array, "*B"]:
        """The student of the class.

        Raises:
          ValueError: no class was given.
        """
        del level
        if cond is None:
            raise ValueError("Students are shared out by class, but no class (cond) was given.")
        return jnp.asarray(self.owners)[cond]

    def owned_classes(self, num_classes: int) -> Bool[np.ndarray, "K C"]:
        """Which classes each student answers for."""
        return np.asarray(self.owners)[None, :num_classes] == np.arange(self.count)[:, None]


@struct.dataclass
class ProductPartition(Partition):
    """Ranges of levels, each shared out by class: student `k * conditions.count + c`.

    Attributes:
      times: the ranges.
      conditions: the classes.
    """

    times: TimestepPartition
    conditions: ConditionPartition

    @property
    def count(self) -> int:
        """K, the product of both counts."""
        return self.times.count * self.conditions.count

    def owner(self, level: Level, cond: Int[Array, "*B"] | None = None) -> Int[Array, "*B"]:
        """The student of the range and the class."""
        return self.times.owner(level) * self.conditions.count + self.conditions.owner(level, cond)

    def owned_levels(self, schedule: Schedule) -> Bool[np.ndarray, "K N"]:
        """Those of the range, once for every group of classes."""
        return np.repeat(self.times.owned_levels(schedule), self.conditions.count, axis=0)

    def owned_classes(self, num_classes: int) -> Bool[np.ndarray, "K C"]:
        """Those of the group, once for every range."""
        return np.tile(self.conditions.owned_classes(num_classes), (self.times.count, 1))


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
            f"students.count={count}, but there are {levels} noise levels to share out; "
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
    """The first level of students 1 .. K-1 for ranges of equal extent in log-SNR."""
    alpha, sigma = (np.asarray(x[1:], np.float64) for x in (schedule.alpha, schedule.sigma))
    value = 2.0 * (np.log(alpha) - np.log(sigma))
    wanted = np.linspace(value[0], value[-1], count + 1)[1:-1]
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
            f"students: levels {at - 1} and {at} have the same noise, so nobody can tell whose "
            "they are. Set students.boundaries to other levels."
        )
    return edges


def condition_partition(num_classes: int, count: int) -> ConditionPartition:
    """Consecutive classes shared out among K students, group sizes differing by at most one.

    The null class, `num_classes`, belongs to the last student.

    Raises:
      ConfigError: more students than classes.
    """
    if not 1 <= count <= num_classes:
        raise ConfigError(
            f"students.count={count}, but there are {num_classes} classes to share out; allowed: "
            f"1 to {num_classes}."
        )
    owners = np.arange(num_classes + 1) * count // num_classes
    return ConditionPartition(jax.device_put(np.minimum(owners, count - 1).astype(np.int32)), count)


def level_ranges(
    partition: Partition, schedule: Schedule, margin: int = 0
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """The first and the last level that each student is trained on.

    Args:
      partition: whose `owner` decides.
      schedule: the students' levels, `[N+1]`.
      margin: levels by which every range is widened at both ends, within 1 .. N.

    Raises:
      ConfigError: a student owns no level of this schedule.
    """
    owned = partition.owned_levels(schedule)
    if not owned.any(axis=1).all():
        k = int(np.argmin(owned.any(axis=1)))
        raise ConfigError(
            f"students: student {k} of {partition.count} owns none of the {schedule.num_steps} "
            "levels of the students' grid. Use fewer students, or a grid of more steps."
        )
    levels = schedule.num_steps
    low = np.argmax(owned, axis=1) + 1
    high = levels - np.argmax(owned[:, ::-1], axis=1)
    return np.maximum(1, low - margin), np.minimum(levels, high + margin)


# ------------------------------------------------------------------------------------- routing


@struct.dataclass
class RoutedDenoiser:
    """K students as one denoiser: every call is answered by the owner, and by nobody else.

    A sampler's step has one level, so it costs one forward pass of one student. Where owners
    differ within a batch the examples are taken one by one.

    Attributes:
      students: a denoiser whose `params` are stacked, `[K, ...]`.
      partition: who owns what.
    """

    students: Denoiser
    partition: Partition

    @property
    def prediction(self) -> str:
        """What the students predict."""
        return self.students.prediction

    def student(self, k: int | Int[Array, ""]) -> Denoiser:
        """Student k alone."""
        return self.students.replace(params=take(self.students.params, k))  # type: ignore[attr-defined]

    def __call__(
        self, z: Float[Array, "B H W C"], level: Level, cond: Any = None, *, key: Any = None
    ) -> Prediction:
        """Predicts x0 and eps; arguments as of `Denoiser`."""
        return self._ask(lambda student: student, z, level, cond, key)

    def with_features(self, taps: Sequence[str]) -> Callable[..., tuple[Prediction, dict]]:
        """The same, returning (prediction, {tap: features}) for the named taps."""

        def call(z, level, cond=None, *, key=None):
            return self._ask(lambda student: student.with_features(taps), z, level, cond, key)

        return call

    def _ask(self, form: Callable, z: Array, level: Level, cond: Any, key: Any) -> Any:
        owner = self.partition.owner(level, cond)
        if owner.ndim == 0:
            return form(self.student(owner))(z, level, cond, key=key)

        def one(example):
            k, z, level, cond = jax.tree.map(lambda x: x[None], example)
            answer = form(self.student(k[0]))(z, level, cond, key=key)
            return jax.tree.map(lambda x: x[0], answer)

        count = z.shape[0]
        levels = jax.tree.map(lambda x: jnp.broadcast_to(x, (count,)), level)
        return jax.lax.map(one, (jnp.broadcast_to(owner, (count,)), z, levels, cond))


def route(network: Any, partition: Partition | None) -> Any:
    """The network itself, or, where there is a partition, its stacked students as one denoiser."""
    return network if partition is None else RoutedDenoiser(network, partition)
