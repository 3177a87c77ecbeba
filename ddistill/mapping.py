"""How a function of one student becomes a function of K: the student axis on the machine.

All mappings compute the same results, with different programs and speeds. XLA turns a vmapped
convolution into a grouped one, with slow backward passes on CPU and GPU; docs/benchmarks.md has the
measurements.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from ddistill.errors import check_choice
from ddistill.students import take
from ddistill.typing import Index, Tree

# As `jax.vmap`'s: a prefix of a tree, with 0 where leaves are stacked `[K, ...]`, None where all
# students share them.
Axes: TypeAlias = PyTree
PartFn: TypeAlias = Callable[[PyTree], PyTree]

MAPPINGS = ("auto", "vmap", "unroll", "map", "loop", "shard")


def resolve(mapping: str) -> str:
    """Names the mapping that "auto" stands for, among students on the same device.

    On CPU one compiled step is dispatched K times: it compiles once and costs what K programs cost.
    Accelerators run one program for all.

    Raises:
      ConfigError: an unknown name.
    """
    check_choice("students.mapping", mapping, MAPPINGS)
    if mapping != "auto":
        return mapping
    return "loop" if jax.default_backend() == "cpu" else "vmap"


def lift(
    fn: Callable,
    count: int,
    mapping: str = "auto",
    in_axes: Axes = 0,
    out_axes: Axes = 0,
    mesh: Mesh | None = None,
) -> Callable:
    """`fn` of one student as a function of `count` students.

    Args:
      fn: positional arguments in, a pytree out.
      count: K.
      mapping: "vmap": one batched program; "unroll": K copies in one program; "map": a loop on the
        device; "loop": one compiled program, dispatched K times (not within jit: there it is
        "unroll"); "auto": see `resolve`; "shard": students on devices of their own, those of a
        device by "auto".
      in_axes: as `jax.vmap`'s, 0 or None, or a tuple with a prefix of each argument's tree: 0 where
        leaves are stacked `[K, ...]`, None where all students share them.
      out_axes: a prefix of the result's tree, with None for results that all students share.
      mesh: for "shard", one with an axis "student" that divides K; default as many of this
        process's devices as do.

    Raises:
      ConfigError: an unknown mapping.
    """
    mapping = resolve(mapping)
    if mapping == "shard":
        mesh = mesh or _student_mesh(count)
        local = lift(fn, count // mesh.shape["student"], "auto", in_axes, out_axes)
        return shard(local, mesh, in_axes, out_axes)
    if mapping == "vmap":
        return jax.vmap(fn, in_axes, out_axes, axis_size=count)
    if mapping == "map":
        return partial(_map, fn, count, in_axes, out_axes)
    return partial(_each, jax.jit(fn) if mapping == "loop" else fn, count, in_axes, out_axes)


def shard(local: Callable, mesh: Mesh, in_axes: Axes = 0, out_axes: Axes = 0) -> Callable:
    """A function of the students of one device, run on each device of the axis "student".

    These devices do not communicate. The mesh's other axes are left to the compiler.

    Args:
      local: takes and returns stacks of K / (size of the axis) students.
      mesh, in_axes, out_axes: as in `lift`; what `out_axes` calls shared has to be equal on all.
    """

    def specs(axes: Axes) -> PyTree:
        return jax.tree.map(
            lambda axis: PartitionSpec() if axis is None else PartitionSpec("student"),
            axes,
            is_leaf=lambda x: x is None,
        )

    def call(*args: PyTree) -> PyTree:
        mapped = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=specs(_axes(in_axes, args)),
            out_specs=specs(out_axes),
            axis_names={"student"},
            check_vma=False,
        )
        return mapped(*args)

    return call


def _student_mesh(count: int) -> Mesh:
    devices = jax.local_devices()
    size = max(n for n in range(1, len(devices) + 1) if count % n == 0)
    return Mesh(np.array(devices[:size]), ("student",))


def _prefixed(axes: Axes, tree: PyTree, stacked: PartFn, shared: PartFn) -> PyTree:
    """`stacked` or `shared` applied to the parts of `tree` that the prefix `axes` names."""
    return jax.tree.map(
        lambda axis, part: shared(part) if axis is None else stacked(part),
        axes,
        tree,
        is_leaf=lambda x: x is None,
    )


def pick(args: Tree, axes: Axes, k: int | Index) -> Tree:
    """Student k's part of `args`; `axes` is a prefix of their tree, 0 or None."""
    return _prefixed(axes, args, lambda part: take(part, k), lambda part: part)


def _axes(in_axes: Axes, args: tuple[PyTree, ...]) -> Axes:
    return in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)


def _each(fn: Callable, count: int, in_axes: Axes, out_axes: Axes, *args: PyTree) -> PyTree:
    results = [fn(*pick(args, _axes(in_axes, args), k)) for k in range(count)]
    return jax.tree.map(
        lambda axis, *parts: (
            parts[0] if axis is None else jax.tree.map(lambda *x: jnp.stack(x), *parts)
        ),
        out_axes,
        *results,
        is_leaf=lambda x: x is None,
    )


def _map(fn: Callable, count: int, in_axes: Axes, out_axes: Axes, *args: PyTree) -> PyTree:
    axes = _axes(in_axes, args)
    results = jax.lax.map(lambda k: fn(*pick(args, axes, k)), jnp.arange(count))
    return _prefixed(out_axes, results, lambda part: part, lambda part: take(part, 0))
