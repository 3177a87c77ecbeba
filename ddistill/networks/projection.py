"""Learned 1x1 convolutions between the features of networks of unlike widths."""

from collections.abc import Mapping

from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.convolution import Conv


class Projection(nn.Module):
    """Brings features to other numbers of channels (the regressors of FitNets, arXiv 1412.6550).

    Attributes:
      channels: (tap, output channels) of every feature that is projected.
    """

    channels: tuple[tuple[str, int], ...] = ()

    @nn.compact
    def __call__(self, features: Mapping[str, Float[Array, "B H W C"]]) -> dict[str, Array]:
        """Returns the features by tap: projected ones in float32, all others unchanged."""
        projected = {
            tap: Conv(count, size=1, name=tap)(features[tap]) for tap, count in self.channels
        }
        return {**features, **projected}
