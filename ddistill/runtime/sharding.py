"""Meshes of devices, and the shardings of a stage's weights and batches.

A mesh has the axes `AXES`. Students are sharded over "student"; devices of different students never
communicate. A student's batch is sharded over "data" and "model" together. Its weights are
replicated over "data" and sharded over "model", and gathered for use (fully sharded data
parallelism).

On CPU the devices are virtual, one per core (`use_cores_as_devices`): cores with a share of the
batch each synchronise less often than cores that share every small operation.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ddistill.errors import ConfigError, check_choice
from ddistill.mapping import resolve
from ddistill.settings import MeshSettings, StudentsSettings
from ddistill.typing import AnyArray, Tree

AXES = ("student", "data", "model")
BATCH_AXES = ("data", "model")
FSDP = ("both", "students", "teacher")
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


def make_mesh(sizes: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `AXES` with the given sizes, of the first devices that it takes.

    Args:
      sizes: of the three axes.
      devices: candidates; default all devices, also of other hosts.
    """
    devices = list(devices or jax.devices())
    count = int(np.prod(sizes))
    kinds = (AxisType.Auto,) * len(AXES)
    if count == len(devices):
        return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices)
    return Mesh(np.array(devices[:count]).reshape(sizes), AXES, axis_types=kinds)


def data_mesh(batch: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh that spreads a batch over as many devices as divide it.

    Args:
      batch: examples of one forward and backward pass.
      devices: candidates; default all devices of this process.

    Returns:
      Mesh with axes `AXES` of sizes (1, n, 1), n the largest divisor of `batch` that is at most
      the number of devices.
    """
    devices = list(devices or jax.local_devices())
    return make_mesh((1, largest_divisor(batch, len(devices)), 1), devices)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(n for n in range(1, most + 1) if number % n == 0)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Dimension `axis`, the batch, is spread over the mesh's data and model axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def constrain(x: Tree, sharding: NamedSharding) -> Tree:
    """Asks for arrays to be placed by `sharding`, within jit and within one student's shard."""
    within = jax.sharding.get_abstract_mesh()
    if not within.empty:
        sharding = NamedSharding(within, sharding.spec)
    return jax.lax.with_sharding_constraint(x, sharding)


def place(tree: Tree, shardings: PyTree) -> Tree:
    """Shards arrays that every process holds in full, also over devices of other hosts.

    Args:
      tree: arrays.
      shardings: one for all, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_from_host, tree, shardings)


def _from_host(x: AnyArray, sharding: jax.sharding.Sharding) -> jax.Array:
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_from_host(jax.random.key_data(x), sharding))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """The tree with every array on every device of the mesh."""
    return place(tree, replicated(mesh))


def to_host(tree: PyTree) -> PyTree:
    """The tree as numpy arrays, also where parts of it lie on other hosts; all have to call it."""
    leaves, structure = jax.tree.flatten(tree)
    far = [i for i, x in enumerate(leaves) if _is_elsewhere(x)]
    if far:
        everywhere = replicated(leaves[far[0]].sharding.mesh)
        # A module-level function, so that jax finds the compiled program in its cache.
        whole = jax.jit(_same, out_shardings=everywhere)([leaves[i] for i in far])
        for i, x in zip(far, whole):
            leaves[i] = x
    return jax.device_get(jax.tree.unflatten(structure, leaves))


def _is_elsewhere(x: object) -> bool:
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _same(arrays: list[jax.Array]) -> list[jax.Array]:
    return arrays


@dataclass(frozen=True)
class Layout:
    """How the arrays of a stage lie on a mesh, and how its students are worked through.

    Attributes:
      mesh: devices with axes `AXES`.
      students: K, or 0 for weights without a student axis.
      mapping: how students on the same devices are mapped, see `ddistill.mapping.lift`; "loop"
        dispatches them one after the other.
      fsdp: networks with weights sharded over the model axis: "students", "teacher" or "both".
      smallest: arrays of fewer elements are never sharded.
    """

    mesh: Mesh
    students: int = 0
    mapping: str = "vmap"
    fsdp: str = "both"
    smallest: int = 2**16

    @property
    def platform(self) -> str:
        """The kind of the devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def spread(self) -> int:
        """Over how many groups of devices the students are spread."""
        return self.mesh.shape["student"]

    @property
    def rounds(self) -> int:
        """How many dispatches a step takes; each serves `spread` students."""
        return self.students // self.spread if self.in_rounds else 1

    @property
    def in_rounds(self) -> bool:
        """Whether students are dispatched one after the other."""
        return self.students > 0 and self.mapping == "loop"

    @property
    def one_by_one(self) -> int:
        """How many students a dispatch is given on a student axis; 0 without such an axis."""
        if not self.in_rounds:
            return self.students
        return self.spread if self.spread > 1 else 0

    def one_round(self) -> "Layout":
        """The layout of the arrays of one round."""
        if not self.in_rounds:
            return self
        return dataclasses.replace(self, students=self.one_by_one, mapping="unroll")

    @property
    def cuts_students(self) -> bool:
        """Whether weights of students are cut over the model axis."""
        return self.mesh.shape["model"] > 1 and self.fsdp in ("both", "students")

    @property
    def cuts_teacher(self) -> bool:
        """Whether the teacher's weights are cut over the model axis."""
        return self.mesh.shape["model"] > 1 and self.fsdp in ("both", "teacher")

    def whole(self) -> NamedSharding:
        """Every device holds all of it."""
        return replicated(self.mesh)

    def by_student(self) -> NamedSharding:
        """The leading axis, the students, is spread over the mesh's student axis."""
        return NamedSharding(self.mesh, PartitionSpec("student"))

    def of_metrics(self) -> NamedSharding:
        """Metrics `[count]`, or `[count, K]`, each student's on its own devices.

        Gathering them would synchronise the students at every step.
        """
        spread = (None, "student") if self.students else ()
        return NamedSharding(self.mesh, PartitionSpec(*spread))

    def of_weights(self, tree: PyTree, stacked: bool) -> PyTree:
        """The shardings of students' weights, optimiser states and averages.

        Args:
          tree: arrays or their shapes.
          stacked: whether they have a leading student axis.
        """
        return jax.tree.map(lambda x: self._of(x.shape, stacked, self.cuts_students), tree)

    def of_teacher(self, tree: PyTree) -> PyTree:
        """The shardings of a frozen network, which all students share."""
        return jax.tree.map(lambda x: self._of(x.shape, False, self.cuts_teacher), tree)

    def _of(self, shape: tuple[int, ...], stacked: bool, cut: bool) -> NamedSharding:
        lead = ("student",) if stacked else ()
        rest = shape[len(lead) :]
        spec = cut_spec(rest, self.mesh.shape["model"], self.smallest) if cut else ()
        return NamedSharding(self.mesh, PartitionSpec(*lead, *spec))


def cut_spec(shape: Sequence[int], parts: int, smallest: int) -> tuple[str | None, ...]:
    """Which dimension of an array is cut over the model axis: the largest that `parts` divides.

    Of equal ones the last, which are a kernel's output channels. Arrays of fewer than `smallest`
    elements stay whole: putting them together would cost more than it saves.
    """
    fits = [i for i, size in enumerate(shape) if size % parts == 0 and size >= parts]
    if parts == 1 or int(np.prod(shape)) < smallest or not fits:
        return ()
    chosen = max(fits, key=lambda i: (shape[i], i))
    return tuple("model" if i == chosen else None for i in range(chosen + 1))


def plan_layout(mesh: MeshSettings, students: StudentsSettings, batch: int, path: str) -> Layout:
    """The layout of a stage on the devices that there are.

    Args:
      mesh: sizes of the axes, 0 for what fits; where there is one network, the devices of "student"
        are added to those of "data".
      students: the stage's.
      batch: examples of one forward and backward pass of one student.
      path: of the mesh settings, for messages.

    Raises:
      ConfigError: sizes that do not fit the devices, the students or the batch.
    """
    check_choice(f"{path}.fsdp", mesh.fsdp, FSDP)
    devices, count = jax.device_count(), students.count
    sizes = {"student": mesh.student, "data": mesh.data, "model": mesh.model}
    for axis, size in sizes.items():
        if size < (1 if axis == "model" else 0):
            least = "1 or more" if axis == "model" else "0 (what fits) or more"
            raise ConfigError(f"{path}.{axis}={size} must be {least}.")
    _check_size(path, sizes, devices)
    if count < 2 and sizes["student"] > 1:
        # With one network, the devices of "student" are added to the data axis.
        sizes["data"] *= sizes["student"]
        sizes["student"] = 1
    if not sizes["student"]:
        most = devices // (max(1, sizes["data"]) * mesh.model)
        spreads = count and students.mapping in ("shard", "auto")
        sizes["student"] = largest_divisor(count, most) if spreads else 1
    if max(1, count) % sizes["student"]:
        raise ConfigError(
            f"{path}.student={sizes['student']} does not divide the {count} students of the stage. "
            f"Allowed: a divisor of {count}, or 0."
        )
    _check_size(path, sizes, devices)
    if not sizes["data"]:
        left = devices // (sizes["student"] * mesh.model)
        fits = [n for n in range(1, left + 1) if batch % (n * mesh.model) == 0]
        sizes["data"] = max(fits, default=1)
    shares = sizes["data"] * sizes["model"]
    if batch % shares:
        raise ConfigError(
            f"{path}: data={sizes['data']} times model={sizes['model']} devices share a batch of "
            f"{batch} examples (batch_size over accumulate), which {shares} does not divide."
        )
    taken = int(np.prod(list(sizes.values())))
    if jax.process_count() > 1 and taken != devices:
        raise ConfigError(
            f"{path}: {_text(sizes)} take {taken} of {devices} devices, and on several hosts all "
            f"have to take part. Choose sizes whose product is {devices}, and a batch size that "
            "data times model divides."
        )
    mapping = resolve("auto" if students.mapping == "shard" else students.mapping)
    return Layout(make_mesh([sizes[a] for a in AXES]), count, mapping, mesh.fsdp, mesh.smallest)


def _check_size(path: str, sizes: dict[str, int], devices: int) -> None:
    wanted = int(np.prod([max(1, size) for size in sizes.values()]))
    if wanted > devices:
        raise ConfigError(f"{path}: {_text(sizes)} take {wanted} devices, and there are {devices}.")


def _text(sizes: dict[str, int]) -> str:
    """The sizes that are set: 0 stands for what fits."""
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size)
