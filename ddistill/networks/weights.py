"""The weights of a network: parameters and statistics."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import struct
from jaxtyping import PyTree

from ddistill.low_rank import merged
from ddistill.students import clone, take
from ddistill.typing import Index, Params


@struct.dataclass
class Weights:
    """The weights of a network.

    Attributes:
      params: its parameters, which optimisers change and averages follow.
      statistics: running means and variances of its batch norms; None if it has none.
      base: of a network of low rank, the frozen parameters that `params` are factors for
        (`ddistill.low_rank`); without a student axis, also where the factors have one.
    """

    params: Params
    statistics: PyTree = None
    base: Params | None = None

    def student(self, k: int | Index) -> "Weights":
        """Student k of a stack."""
        return take(self.replace(base=None), k).replace(base=self.base)  # type: ignore[attr-defined,no-any-return]

    def cloned(self, count: int) -> "Weights":
        """A stack of `count` equal students."""
        return clone(self.replace(base=None), count).replace(base=self.base)  # type: ignore[attr-defined,no-any-return]

    def whole(self) -> "Weights":
        """The same network without a base: the factors are added to its parameters."""
        if self.base is None:
            return self
        return self.replace(params=merged(self.base, self.params), base=None)  # type: ignore[attr-defined,no-any-return]

    def variables(self) -> dict[str, PyTree]:
        """The collections that `module.apply` takes."""
        if self.statistics is None:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.statistics}


def variable_shapes(module: nn.Module, *inputs: PyTree) -> dict[str, PyTree]:
    """Shapes and dtypes of the variables that `module.init` makes. Equal networks are traced once.

    Args:
      module: the network.
      inputs: arguments of `module.init` after the random key, or their shapes.
    """
    return traced_shapes(module, *inputs)[1]


def traced_shapes(
    module: nn.Module, *inputs: PyTree, taps: tuple[str, ...] = ()
) -> tuple[PyTree, dict[str, PyTree]]:
    """Shapes and dtypes of a network's output and variables. Equal networks are traced once.

    Args:
      module: the network.
      inputs: arguments of `module.init` after the random key, or their shapes.
      taps: feature taps that are asked for; the output then ends with them.
    """
    leaves, tree = jax.tree.flatten(inputs)
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
    # A tree of its own for each caller.
    return jax.tree.map(lambda x: x, _traced(module, taps, tree, shapes))  # type: ignore[no-any-return]


# Tracing takes a second; a run asks for the shapes of every stage that it starts, reads or checks.
@functools.lru_cache(maxsize=64)
def _traced(
    module: nn.Module,
    taps: tuple[str, ...],
    tree: jax.tree_util.PyTreeDef,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
) -> tuple[PyTree, dict[str, PyTree]]:
    # Networks without feature taps have no such argument.
    options: Mapping[str, Any] = {"taps": taps} if taps else {}

    def init(*inputs: PyTree) -> tuple[PyTree, dict[str, PyTree]]:
        return module.init_with_output(jax.random.key(0), *inputs, **options)  # type: ignore[return-value]

    return jax.eval_shape(init, *jax.tree.unflatten(tree, leaves))  # type: ignore[no-any-return]
