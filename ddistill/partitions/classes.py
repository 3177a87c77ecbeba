"""Partitions by groups of classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from ddistill.conditions import Condition
from ddistill.errors import ConfigError, check_choice
from ddistill.partitions.base import Partition
from ddistill.schedules import Level
from ddistill.typing import HostLabels

CLASS_GROUPINGS = ("consecutive", "random", "clustered")


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

    def owner(self, level: Level, cond: Condition | None = None) -> Int[Array, "*B"]:
        """The student of the class.

        Raises:
          ValueError: no class was given.
        """
        del level
        if cond is None:
            raise ValueError("Students are partitioned by class, but no class (cond) was given.")
        return jnp.asarray(self.owners)[jnp.asarray(cond)]

    def owned_classes(self, num_classes: int) -> Bool[np.ndarray, "K C"]:
        """Which classes each student owns."""
        return np.asarray(self.owners)[None, :num_classes] == np.arange(self.count)[:, None]

    @property
    def groups(self) -> int:
        """K."""
        return self.count

    def group(self, cond: Condition | HostLabels) -> Int[np.ndarray, "*B"]:
        """The student of a class."""
        return np.asarray(self.owners)[np.asarray(cond)]

    def within(self, g: int) -> tuple[Int[np.ndarray, " k"], Partition | None]:
        """Student g alone."""
        return np.array([g]), None


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
    centres = points[spread_out(points, count, np.random.default_rng(seed))]
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


def spread_out(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Different points to begin with, far ones likelier (k-means++, Arthur and Vassilvitskii)."""
    chosen = [int(rng.integers(len(points)))]
    away = np.full(len(points), np.inf)
    while len(chosen) < count:
        # From the newest point alone: 20,000 texts with every point are gigabytes.
        away = np.minimum(away, np.sum((points - points[chosen[-1]]) ** 2, axis=-1))
        away[chosen] = 0.0
        left = np.setdiff1d(np.arange(len(points)), chosen)
        share = away[left] / away[left].sum() if away[left].sum() > 0 else None
        chosen.append(int(rng.choice(left, p=share)))
    return np.array(chosen)
