"""What every partition answers, and the levels that its students are trained on."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from ddistill.conditions import Condition
from ddistill.errors import ConfigError
from ddistill.schedules import Level, Schedule
from ddistill.typing import HostLabels


class Partition:
    """Assigns every noise level and condition to one of K students.

    Subclasses are pytrees with their boundaries as arrays: changing boundaries does not recompile.
    """

    @property
    def count(self) -> int:
        """K."""
        raise TypeError(f"{type(self).__name__} does not define its count.")

    def owner(self, level: Level, cond: Condition | None = None) -> Int[Array, "*B"]:
        """The student that owns a noise level and a condition, in 0 .. K-1.

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
        """Number of groups of conditions; 1 where owners do not depend on the condition."""
        return 1

    def group(self, cond: Condition | HostLabels) -> Int[np.ndarray, "*B"]:
        """The group of every condition, on the host."""
        return np.zeros(np.shape(jax.tree.leaves(cond)[0])[:1], np.int32)

    def within(self, g: int) -> tuple[Int[np.ndarray, " k"], "Partition | None"]:
        """The students of a group, and the partition among them; None for a single student."""
        del g
        return np.arange(self.count), self


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
