"""The router of exported text-to-image students: cells of prompts, and ranges of timesteps."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddistill.export.facts import Exported
from ddistill.interop.tensors import write_tensors
from ddistill.partitions import Partition, ProductPartition, TimestepPartition, text_part
from ddistill.schedules import Schedule, build_schedule
from ddistill.students import RoutedDenoiser


def write_router(exported: Exported, out: Path, students: Sequence[str]) -> dict[str, object]:
    """Writes router.safetensors and pipeline.py into the folder of a pipeline or of LoRA files.

    Student k of a product of ranges and cells is range * cells + cell.

    Args:
      exported: several students.
      out: the folder.
      students: the folder of every student's U-Net, or the name of its adapter.

    Returns:
      The entry of ddistill.json.
    """
    assert isinstance(exported.network, RoutedDenoiser)
    partition, texts = exported.network.partition, text_part(exported.network.partition)
    write_tensors(out / "router.safetensors", router_tensors(exported))
    shutil.copyfile(Path(__file__).with_name("routed_pipeline.py"), out / "pipeline.py")
    pool = texts.pool if texts is not None else "tokens"
    return {"router": {"students": list(students), "pool": pool, "cells": partition.groups}}


def router_tensors(exported: Exported) -> dict[str, np.ndarray]:
    """The first timestep of every range of levels, and the cells of texts, by field."""
    assert isinstance(exported.network, RoutedDenoiser)
    partition, s = exported.network.partition, exported.settings.schedule
    whole = build_schedule(s.name, s.steps, **s.options)
    tensors = {"first_timesteps": first_timesteps(partition, whole)}
    texts = text_part(partition)
    if texts is not None and texts.cells is not None:
        cells = texts.cells
        tensors |= {n: np.asarray(getattr(cells, n)) for n in cells.__dataclass_fields__}
    return tensors


def first_timesteps(partition: Partition, whole: Schedule) -> np.ndarray:
    """The first timestep of every range of levels, int64; 0 alone for students of all levels."""
    times = partition.times if isinstance(partition, ProductPartition) else partition
    if not isinstance(times, TimestepPartition):
        return np.zeros(1, np.int64)
    # Level 1 is timestep 0.
    return times.owned_levels(whole).argmax(axis=1)
