"""Partitions of the task among K students: by ranges of noise levels, classes, texts, or both.

Training (the examples of a student), sampling (the student of a step) and evaluation all use the
`owner` of a partition, so that they cannot disagree.
"""

from ddistill.partitions.base import Partition, level_ranges
from ddistill.partitions.classes import CLASS_GROUPINGS, ConditionPartition, condition_partition
from ddistill.partitions.levels import (
    TIMESTEP_SPACINGS,
    TimestepPartition,
    angle,
    timestep_partition,
)
from ddistill.partitions.product import ProductPartition
from ddistill.partitions.texts import (
    TEXT_SPLITS,
    Cuts,
    EmbeddingPartition,
    PowerDiagram,
    text_part,
    with_cells,
)

__all__ = [
    "CLASS_GROUPINGS",
    "TEXT_SPLITS",
    "TIMESTEP_SPACINGS",
    "ConditionPartition",
    "Cuts",
    "EmbeddingPartition",
    "Partition",
    "PowerDiagram",
    "ProductPartition",
    "TimestepPartition",
    "angle",
    "condition_partition",
    "level_ranges",
    "text_part",
    "timestep_partition",
    "with_cells",
]
