"""Partitions by ranges of levels and by conditions together."""

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from ddistill.conditions import Condition
from ddistill.partitions.base import Partition
from ddistill.partitions.levels import TimestepPartition
from ddistill.schedules import Level, Schedule
from ddistill.typing import HostLabels


@struct.dataclass
class ProductPartition(Partition):
    """Ranges of levels, each partitioned by condition: student `k * conditions.count + c`.

    Attributes:
      times: the ranges.
      conditions: the partition by class or by text.
    """

    times: TimestepPartition
    conditions: Partition

    @property
    def count(self) -> int:
        """K, the product of both counts."""
        return self.times.count * self.conditions.count

    def owner(self, level: Level, cond: Condition | None = None) -> Int[Array, "*B"]:
        """The student of the range and the condition."""
        return self.times.owner(level) * self.conditions.count + self.conditions.owner(level, cond)

    def owned_levels(self, schedule: Schedule) -> Bool[np.ndarray, "K N"]:
        """The levels of the range, once for every group of conditions."""
        return np.repeat(self.times.owned_levels(schedule), self.conditions.count, axis=0)

    def owned_classes(self, num_classes: int) -> Bool[np.ndarray, "K C"]:
        """The classes of the group, once for every range."""
        return np.tile(self.conditions.owned_classes(num_classes), (self.times.count, 1))

    @property
    def groups(self) -> int:
        """The number of groups of conditions."""
        return self.conditions.count

    def group(self, cond: Condition | HostLabels) -> Int[np.ndarray, "*B"]:
        """The group of every condition."""
        return self.conditions.group(cond)

    def within(self, g: int) -> tuple[Int[np.ndarray, " k"], Partition | None]:
        """The students of a group, one for each range of levels."""
        return np.arange(self.times.count) * self.conditions.count + g, self.times
