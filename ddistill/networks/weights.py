"""What a trained network consists of."""

from typing import Any

from flax import struct


@struct.dataclass
class Weights:
    """The weights of a network.

    Attributes:
      params: its parameters, which optimisers change and averages follow.
      statistics: running means and variances of its batch norms; None if it has none.
    """

    params: Any
    statistics: Any = None

    def variables(self) -> dict[str, Any]:
        """The collections that `module.apply` takes."""
        if self.statistics is None:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.statistics}
