"""Many students as one: stacked parameters, and a denoiser that routes calls to their owner.

K students of one shape are one pytree; its leaves have a leading axis `[K, ...]`. A `Partition`
(`ddistill.partitions`) names the student that owns a noise level and a class or a text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from ddistill.conditions import Condition
from ddistill.denoiser import Denoiser, DenoiserLike, DenoiserWithFeatures, whole
from ddistill.diffusion import Prediction
from ddistill.partitions import Partition
from ddistill.schedules import Level
from ddistill.typing import Features, HostLabels, Images, Index, RandomKey, Tree

T = TypeVar("T")
D = TypeVar("D", bound=DenoiserLike)


def stack(students: Sequence[Tree]) -> Tree:
    """One tree with leaves `[K, ...]` from K trees of equal structure and shapes."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *students)


def take(stacked: Tree, k: int | Index) -> Tree:
    """Student k of a stack; `k` may be traced, and then has to be in 0 .. K-1."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, keepdims=False), stacked)


def clone(student: Tree, count: int) -> Tree:
    """A stack of `count` equal students."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), student)


# ------------------------------------------------------------------------------------- routing


@struct.dataclass
class RoutedDenoiser:
    """K students as one denoiser: the owner of an example's level and condition predicts it.

    A call at one level and one condition is one forward pass of one student. Where owners differ
    within a batch, examples are predicted one by one.

    Attributes:
      students: a denoiser whose `params` are stacked, `[K, ...]`.
      partition: the owner of each level and condition.
    """

    students: Denoiser
    partition: Partition

    @property
    def prediction(self) -> str:
        """The prediction type of the students."""
        return self.students.prediction

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the scalars that the networks are given beside their time."""
        return self.students.extras

    def given(self, **values: Array | float) -> Self:
        """Returns the same with values of extra inputs; arguments and errors as of `Denoiser`."""
        return replace(self, students=self.students.given(**values))

    def student(self, k: int | Index) -> Denoiser:
        """Student k alone."""
        return replace(self.students, params=take(self.students.params, k))

    def of_group(self, g: int) -> "Denoiser | RoutedDenoiser":
        """The students of a group of conditions: a single one, or one for each range of levels."""
        ks, rest = self.partition.within(g)
        if rest is None:
            return self.student(int(ks[0]))
        if rest is self.partition:
            return self
        params = jax.tree.map(lambda x: x[ks], self.students.params)
        return RoutedDenoiser(replace(self.students, params=params), rest)

    def __call__(
        self,
        z: Images,
        level: Level,
        cond: Condition | None = None,
        *,
        key: RandomKey | None = None,
    ) -> Prediction:
        """Predicts x0 and eps; arguments as of `Denoiser`."""
        return self._by_owner(lambda student: student, z, level, cond, key)

    def with_features(self, taps: Sequence[str]) -> DenoiserWithFeatures:
        """The same, returning (prediction, {tap: features}) for the named taps."""

        def call(
            z: Images, level: Level, cond: Condition | None = None, *, key: RandomKey | None = None
        ) -> tuple[Prediction, Features]:
            return self._by_owner(lambda student: student.with_features(taps), z, level, cond, key)

        return call

    def _by_owner(
        self,
        form: Callable[[Denoiser], Callable[..., T]],
        z: Images,
        level: Level,
        cond: Condition | None,
        key: RandomKey | None,
    ) -> T:
        """The results of `form(student)`, each example's from its owner."""
        owner = self.partition.owner(level, cond)
        if owner.ndim == 0:
            return form(self.student(owner))(z, level, cond, key=key)

        def one(example: tuple[Array, Array, Level, Condition | None, Mapping[str, Array]]) -> T:
            k, z, level, cond, extra = jax.tree.map(lambda x: x[None], example)
            student = replace(self.student(k[0]), extra=extra)
            found = form(student)(z, level, cond, key=key)
            return jax.tree.map(lambda x: x[0], found)

        count = z.shape[0]
        levels, extra = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (count,)), (level, dict(self.students.extra))
        )
        return jax.lax.map(one, (jnp.broadcast_to(owner, (count,)), z, levels, cond, extra))


def in_groups(
    network: D,
    cond: Condition | HostLabels | None,
    count: int,
    sample: Callable[[D | Denoiser | RoutedDenoiser, np.ndarray], Array],
) -> Array:
    """Samples a batch of mixed conditions, each image with the students of its class or text.

    Examples are sorted by group of conditions and cut into pieces of equal size, padded with
    repetitions, so that one compiled sampler runs for all pieces.

    Args:
      network: any denoiser; one that is partitioned by condition is sampled group by group.
      cond: conditions of `count` examples.
      count: images in the batch.
      sample: `(denoiser, rows) -> [len(rows), ...]`, the images of these rows of the batch.

    Returns:
      `[count, ...]`, in the order of the batch.

    Raises:
      ValueError: the students are partitioned by condition and `cond` is None.
    """
    rows = np.arange(count)
    if not isinstance(network, RoutedDenoiser):
        return sample(network, rows)
    if network.partition.groups == 1:
        return sample(network.of_group(0), rows)
    if cond is None:
        raise ValueError("Students are partitioned by class or text, and no cond was given.")
    group = network.partition.group(cond)
    size = -(-count // network.partition.groups)
    images: Array | None = None
    for g in range(network.partition.groups):
        own = rows[group == g]
        for first in range(0, len(own), size):
            piece = own[first : first + size]
            missing = size - len(piece)
            made = sample(network.of_group(g), np.append(piece, np.full(missing, piece[-1])))
            images = jnp.zeros((count, *made.shape[1:]), made.dtype) if images is None else images
            # The padding is dropped. All pieces have one shape, so that this compiles once too.
            places = np.append(piece, np.full(missing, count))
            images = images.at[places].set(made, mode="drop")
    assert images is not None  # count is at least 1
    return images


def whole_network(network: Denoiser | RoutedDenoiser) -> Denoiser | RoutedDenoiser:
    """The same network without a base: factors of low rank are added to its parameters."""
    if isinstance(network, RoutedDenoiser):
        return replace(network, students=whole(network.students))
    return whole(network)


def route(network: Denoiser, partition: Partition | None) -> Denoiser | RoutedDenoiser:
    """The network itself, or with a partition its stacked students as one denoiser."""
    return network if partition is None else RoutedDenoiser(network, partition)
