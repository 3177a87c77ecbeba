"""The weights of a network: parameters and statistics."""

from flax import struct
from jaxtyping import PyTree

from ddistill.typing import Params


@struct.dataclass
class Weights:
    """The weights of a network.

    Attributes:
      params: its parameters, which optimisers change and averages follow.
      statistics: running means and variances of its batch norms; None if it has none.
    """

    params: Params
    statistics: PyTree = None

    def variables(self) -> dict[str, PyTree]:
        """The collections that `module.apply` takes."""
        if self.statistics is None:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.statistics}
