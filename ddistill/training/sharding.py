"""Where arrays lie: meshes of devices, and batches spread over them.

On CPU the devices are virtual, one a core (`use_cores_as_devices`): a core that walks through its
own share of the batch waits less for the others than cores that share every small operation.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("student", "data", "model")
# Beyond this, shares of a CPU-sized batch are too small to be worth a device.
MAX_CPU_DEVICES = 8


def use_cores_as_devices() -> None:
    """Makes every usable core a CPU device, unless the user has chosen a number.

    Has to come before jax looks at its devices. `JAX_NUM_CPU_DEVICES` is the user's way to choose.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", min(cores or 1, MAX_CPU_DEVICES))


def data_mesh(batch: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh that spreads a batch over as many devices as divide it.

    Args:
      batch: examples of one forward and backward pass.
      devices: those to choose from; default all of this process.

    Returns:
      Mesh with axes `AXES` of sizes (1, n, 1), n the largest divisor of `batch` that is at most
      the number of devices.
    """
    devices = list(devices or jax.local_devices())
    count = max(n for n in range(1, len(devices) + 1) if batch % n == 0)
    grid = np.array(devices[:count]).reshape(1, count, 1)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Dimension `axis`, the batch, is spread over the mesh's data axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree with every array on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))
