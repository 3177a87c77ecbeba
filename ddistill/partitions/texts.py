"""Partitions of texts by their pooled embeddings (Multi-Student Distillation, arXiv 2410.23274).

The cells are fitted on the captions of a set (`ddistill.partitions.fitting`). Other texts are
assigned by the same cells.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from ddistill.conditions import Condition, TextCondition
from ddistill.partitions.base import Partition
from ddistill.partitions.product import ProductPartition
from ddistill.schedules import Level
from ddistill.typing import HostLabels

TEXT_SPLITS = ("quadrants", "principal", "clusters", "listed")


@struct.dataclass
class Cuts:
    """Cells of equal size by cuts at medians: each cut halves every cell of the cuts before it.

    Attributes:
      axes: `[d, D]`, the directions of the cuts.
      thresholds: `[d, 2^(d-1)]`; row j has the thresholds of the 2^j cells that cut j divides, then
        zeros.
    """

    axes: Float[Array, "d D"]
    thresholds: Float[Array, "d H"]

    @property
    def count(self) -> int:
        """Number of cells, 2^d."""
        return 2 ** self.axes.shape[0]

    def __call__(self, pooled: Float[Array, "B D"]) -> Int[Array, " B"]:
        """The cell of every embedding."""
        return self.of_scores(jnp.matmul(pooled, self.axes.T, precision="highest"))

    def of_scores(self, scores: Float[Array, "B d"]) -> Int[Array, " B"]:
        """The cell of embeddings with these products with the axes."""
        cell = jnp.zeros(scores.shape[0], jnp.int32)
        for j in range(self.axes.shape[0]):
            cell = 2 * cell + (scores[:, j] > self.thresholds[j][cell])
        return cell


@struct.dataclass
class PowerDiagram:
    """Cells of the nearest centre after a bias: the minimum of |x - c_k|^2 - b_k.

    Attributes:
      centres: `[K, D]`.
      biases: `[K]`; a larger bias makes a larger cell.
    """

    centres: Float[Array, "K D"]
    biases: Float[Array, " K"]

    @property
    def count(self) -> int:
        """Number of cells, K."""
        return self.centres.shape[0]

    def __call__(self, pooled: Float[Array, "B D"]) -> Int[Array, " B"]:
        """The cell of every embedding."""
        # Around the mean of the centres, so that squares do not cancel in float32.
        middle = jnp.mean(self.centres, axis=0)
        x, c = pooled - middle, self.centres - middle
        products = jnp.matmul(x, c.T, precision="highest")
        costs = jnp.sum(jnp.square(c), axis=1) - 2.0 * products - self.biases
        return jnp.argmin(costs, axis=1).astype(jnp.int32)


Cells = Cuts | PowerDiagram


@struct.dataclass
class EmbeddingPartition(Partition):
    """Texts partitioned among students by `TextCondition.pooled`.

    Attributes:
      students: K.
      pool: how states of a text are pooled, see `ddistill.networks.text_encoding.TextEncoder`.
      cells: of the embeddings; None before they are fitted, when there are no owners.
    """

    students: int = struct.field(pytree_node=False)
    pool: str = struct.field(pytree_node=False, default="tokens")
    cells: Cells | None = None

    @property
    def count(self) -> int:
        """K."""
        return self.students

    def owner(self, level: Level, cond: Condition | None = None) -> Int[Array, " B"]:
        """The student of every text.

        Raises:
          ValueError: no texts were given, or the cells are not fitted.
        """
        del level
        return self._fitted()(_pooled(cond))

    @property
    def groups(self) -> int:
        """K."""
        return self.count

    def group(self, cond: Condition | HostLabels) -> Int[np.ndarray, " B"]:
        """The student of every text; errors as of `owner`."""
        return np.asarray(_cells_of(self._fitted(), _pooled(cond)))

    def within(self, g: int) -> tuple[Int[np.ndarray, " k"], Partition | None]:
        """Student g alone."""
        return np.array([g]), None

    def _fitted(self) -> Cells:
        if self.cells is None:
            raise ValueError("The partition by text is not fitted: its stage is not trained.")
        return self.cells


def _pooled(cond: Condition | HostLabels | None) -> Float[Array, "B D"]:
    if not isinstance(cond, TextCondition):
        raise ValueError("Students are partitioned by text, but no text (cond) was given.")
    return cond.pooled


@jax.jit
def _cells_of(cells: Cells, pooled: Float[Array, "B D"]) -> Int[Array, " B"]:
    return cells(pooled)


def text_part(partition: Partition | None) -> EmbeddingPartition | None:
    """The partition by text in a partition; None for others."""
    if isinstance(partition, ProductPartition):
        partition = partition.conditions
    return partition if isinstance(partition, EmbeddingPartition) else None


def with_cells(partition: Partition, cells: Cells) -> Partition:
    """A partition with a part by text, with the cells of that part."""
    if isinstance(partition, ProductPartition):
        conditions = with_cells(partition.conditions, cells)
        return replace(partition, conditions=conditions)
    return replace(partition, cells=cells)  # type: ignore[type-var]
