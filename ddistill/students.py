"""Many students as one: stacked parameters, and a network that asks the owner.

K students of one shape are one pytree whose leaves have a leading axis `[K, ...]`. A `Partition`
(ddistill/partitions.py) says which of them answers for a noise level and a condition.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction
from ddistill.partitions import Partition
from ddistill.schedules import Level


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

    def of_group(self, g: int) -> Any:
        """Those who answer for one group of classes: one student, or ranges of levels."""
        ks, rest = self.partition.within(g)
        if rest is None:
            return self.student(int(ks[0]))
        if rest is self.partition:
            return self
        params = jax.tree.map(lambda x: x[ks], self.students.params)
        return RoutedDenoiser(self.students.replace(params=params), rest)  # type: ignore[attr-defined]

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


def in_groups(
    network: Any,
    cond: Int[np.ndarray, " B"] | None,
    count: int,
    sample: Callable[[Any, np.ndarray], Array],
) -> Array:
    """Samples a batch of mixed classes: every student makes the images of its own.

    Examples are sorted by who answers for their class; the shares are cut into pieces of equal
    size, filled up with repetitions, so that one compiled sampler serves them all.

    Args:
      network: any denoiser; only one that is shared out by class is taken apart.
      cond: `[count]` classes, on the host.
      count: images in the batch.
      sample: `(denoiser, rows) -> [len(rows), ...]`, the images of these rows of the batch.

    Returns:
      `[count, ...]`, in the order of the batch.

    Raises:
      ValueError: the students are shared out by class and there are no classes.
    """
    rows = np.arange(count)
    if not isinstance(network, RoutedDenoiser):
        return sample(network, rows)
    if network.partition.groups == 1:
        return sample(network.of_group(0), rows)
    if cond is None:
        raise ValueError("Students are shared out by class, but no class (cond) was given.")
    group = network.partition.group(np.asarray(cond))
    size = -(-count // network.partition.groups)
    images: Any = None
    for g in range(network.partition.groups):
        own = rows[group == g]
        for first in range(0, len(own), size):
            piece = own[first : first + size]
            missing = size - len(piece)
            made = sample(network.of_group(g), np.append(piece, np.full(missing, piece[-1])))
            images = jnp.zeros((count, *made.shape[1:]), made.dtype) if images is None else images
            # What fills up goes nowhere. All pieces have one shape, so that this compiles once too.
            places = np.append(piece, np.full(missing, count))
            images = images.at[places].set(made, mode="drop")
    return images


def route(network: Any, partition: Partition | None) -> Any:
    """The network itself, or, where there is a partition, its stacked students as one denoiser."""
    return network if partition is None else RoutedDenoiser(network, partition)
