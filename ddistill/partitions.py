"""Partitions of the task among K students: by ranges of noise levels, groups of classes, or both.

Training (the examples of a student), sampling (the student of a step) and evaluation all use the
`owner` of a partition, so that they cannot disagree.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from ddistill.errors import ConfigError, check_choice
from ddistill.schedules import Level, Schedule

TIMESTEP_SPACINGS = ("index", "log_snr")
CLASS_GROUPINGS = ("consecutive", "random", "clustered")


class Partition:
    """Assigns every noise level and class to one of K students.

    Subclasses are pytrees with their boundaries as arrays: changing boundaries does not recompile.
    """

    @property
    def count(self) -> int:
        """K."""
        raise TypeError(f"{type(self).__name__} does not define its count.")

    def owner(self, level: Level, cond: Int[Array, " B"] | None = None) -> Int[Array, "*B"]:
        """The student that owns a noise level and a class, in 0 .. K-1.

        The result is a scalar where the arguments that it depends on are scalars.
        """
        raise TypeError(f"{type(self).__name__} does not define its owner.")

    def owned_levels(self, schedule: Schedule) -> Bool[np.ndarray, "K N"]:
        """Which of levels 1 .. N of a schedule each student owns for some class."""
        return np.ones((self.count, schedule.num_steps), bool)

    def owned_classes(self, num_classes: int) -> Bool[np.ndarray, "K C"]:
        """Which classes each student owns at some level."""
        return np.ones((self.count, num_classes), bool)

    @property
    def groups(self) -> int:
        """Number of groups of classes; 1 where owners do not depend on the class."""
        return 1

    def group(self, cond: Int[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
        """The group of a class, on the host."""
        return np.zeros(np.shape(cond), np.int32)

    def within(self, g: int) -> tuple[Int[np.ndarray, " k"], "Partition | None"]:
        """The students of a group, and the partition among them; None for a single student."""
        del g
        return np.arange(self.count), self


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

    def owner(self, level: Level, cond: Int[Array, "*B"] | None = None) -> Int[Array, "*B"]:
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


@struct.dataclass
class ConditionPartition(Partition):
    """Classes partitioned among students (arXiv 2410.23274). Make it with `condition_partition`.

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
            raise ValueError("Students are partitioned by class, but no class (cond) was given.")
        return jnp.asarray(self.owners)[cond]

    def owned_classes(self, num_classes: int) -> Bool[np.ndarray, "K C"]:
        """Which classes each student owns."""
        return np.asarray(self.owners)[None, :num_classes] == np.arange(self.count)[:, None]

    @property
    def groups(self) -> int:
        """K."""
        return self.count

    def group(self, cond: Int[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
        """The student of a class."""
        return np.asarray(self.owners)[cond]

    def within(self, g: int) -> tuple[Int[np.ndarray, " k"], Partition | None]:
        """Student g alone."""
        return np.array([g]), None


@struct.dataclass
class ProductPartition(Partition):
    """Ranges of levels, each partitioned by class: student `k * conditions.count + c`.

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
        """The levels of the range, once for every group of classes."""
        return np.repeat(self.times.owned_levels(schedule), self.conditions.count, axis=0)

    def owned_classes(self, num_classes: int) -> Bool[np.ndarray, "K C"]:
        """The classes of the group, once for every range."""
        return np.tile(self.conditions.owned_classes(num_classes), (self.times.count, 1))

    @property
    def groups(self) -> int:
        """The number of groups of classes."""
        return self.conditions.count

    def group(self, cond: Int[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
        """The group of a class."""
        return self.conditions.group(cond)

    def within(self, g: int) -> tuple[Int[np.ndarray, " k"], Partition | None]:
        """The students of a group of classes, one for each range of levels."""
        return np.arange(self.times.count) * self.conditions.count + g, self.times


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


def condition_partition(
    num_classes: int,
    count: int,
    grouping: str = "consecutive",
    groups: Sequence[Sequence[int]] = (),
    seed: int = 0,
    embeddings: Float[np.ndarray, "C D"] | None = None,
) -> ConditionPartition:
    """Partitions classes among K students.

    Group sizes differ by at most one, unless the groups are listed. The null class, `num_classes`,
    belongs to the last student.

    Args:
      num_classes: C.
      count: K.
      grouping: "consecutive": by class number, as arXiv 2410.23274 does on ImageNet; "random";
        "clustered": classes of like embeddings together.
      groups: instead of a grouping, the classes of every student.
      seed: of "random", and of the first centres of "clustered".
      embeddings: of the classes, for "clustered".

    Raises:
      ConfigError: more students than classes, groups that leave a class out or name one twice, or
        embeddings that are missing or of another number.
    """
    check_choice("students.grouping", grouping, CLASS_GROUPINGS)
    if not 1 <= count <= num_classes:
        raise ConfigError(
            f"students.count={count}, but there are {num_classes} classes to partition; allowed: "
            f"1 to {num_classes}."
        )
    if len(groups):
        owners = _listed(num_classes, count, groups)
    elif grouping == "clustered":
        owners = _clustered(num_classes, count, embeddings, seed)
    else:
        owners = np.arange(num_classes) * count // num_classes
        if grouping == "random":
            owners = np.random.default_rng(seed).permutation(owners)
    owners = np.append(owners, count - 1).astype(np.int32)
    return ConditionPartition(jax.device_put(owners), count)


def _listed(num_classes: int, count: int, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Owners from the classes of every student."""
    if len(groups) != count:
        raise ConfigError(f"students.groups lists {len(groups)} groups for {count} students.")
    owners = np.full(num_classes, -1)
    for k, group in enumerate(groups):
        if not len(group):
            raise ConfigError(f"students.groups[{k}] is empty: that student would own nothing.")
        for c in group:
            if not 0 <= c < num_classes:
                raise ConfigError(
                    f"students.groups[{k}] names class {c}; classes are 0 to {num_classes - 1}."
                )
            if owners[c] >= 0:
                raise ConfigError(
                    f"students.groups: class {c} is owned by student {owners[c]} and by student "
                    f"{k}. Each class belongs to one."
                )
            owners[c] = k
    left = np.flatnonzero(owners < 0)
    if left.size:
        shown = ", ".join(map(str, left[:8])) + (", ..." if left.size > 8 else "")
        raise ConfigError(f"students.groups: no student owns the classes {shown}.")
    return owners


def _clustered(
    num_classes: int, count: int, embeddings: np.ndarray | None, seed: int, rounds: int = 100
) -> np.ndarray:
    """Owners by k-means with groups of equal size (to one): assignment and means in turn.

    The assignment is the cheapest one in squared distance among all with those sizes, so that the
    sum of distances never rises and the rounds come to an end.
    """
    if embeddings is None or len(embeddings) != num_classes:
        found = "none" if embeddings is None else f"{len(embeddings)}"
        raise ConfigError(
            f"students.grouping='clustered' needs an embedding of each of {num_classes} classes; "
            f"given: {found}."
        )
    from scipy.optimize import linear_sum_assignment  # slow to import, and only needed here

    points = np.asarray(embeddings, np.float64).reshape(num_classes, -1)
    if not np.isfinite(points).all():
        raise ConfigError("students.grouping='clustered': an embedding is not finite.")
    seats = np.arange(num_classes) * count // num_classes
    centres = points[_spread_out(points, count, np.random.default_rng(seed))]
    owners = np.full(num_classes, -1)
    for _ in range(rounds):
        distance = np.sum((points[:, None] - centres[None]) ** 2, axis=-1)
        rows, columns = linear_sum_assignment(distance[:, seats])
        new = np.empty(num_classes, int)
        new[rows] = seats[columns]
        if np.array_equal(new, owners):
            break
        owners = new
        centres = np.stack([points[owners == k].mean(axis=0) for k in range(count)])
    # Named by their smallest class, so that equal groups are equal partitions.
    order = np.argsort([np.flatnonzero(owners == k)[0] for k in range(count)])
    return np.argsort(order)[owners]


def _spread_out(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Different points to begin with, far ones likelier (k-means++, Arthur and Vassilvitskii)."""
    chosen = [int(rng.integers(len(points)))]
    while len(chosen) < count:
        away = np.min(np.sum((points[:, None] - points[chosen]) ** 2, axis=-1), axis=1)
        away[chosen] = 0.0
        left = np.setdiff1d(np.arange(len(points)), chosen)
        share = away[left] / away[left].sum() if away[left].sum() > 0 else None
        chosen.append(int(rng.choice(left, p=share)))
    return np.array(chosen)


def level_ranges(
    partition: Partition, schedule: Schedule, margin: int = 0
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]:
    """The first and the last level that each student is trained on.

    Args:
      partition: of the levels.
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
