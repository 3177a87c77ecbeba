"""The learnt weight of a noise level, a small network beside the one that is trained."""

from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.convolution import zeros
from ddistill.networks.layers import embedding_layer, sinusoidal_embedding


class TimeWeight(nn.Module):
    """Sinusoids of a level, a linear layer, SiLU, and one number that is 0 before training.

    The uncertainty of EDM2 (arXiv 2312.02696 eq. 21): with the number w a loss L is weighed as
    exp(-w) L + w, the minimum of which is at w = log L.

    Attributes:
      features: number of sinusoids.
      width: of the hidden layer.
      scale: factor of the level before the sinusoids, whose highest frequency is 1.
    """

    features: int = 64
    width: int = 128
    scale: float = 1.0

    @nn.compact
    def __call__(self, value: Float[Array, " B"]) -> Float[Array, " B"]:
        """Returns w, `[B]`."""
        waves = sinusoidal_embedding(value * self.scale, self.features)
        hidden = nn.silu(embedding_layer(self.width, "dense_0")(waves))
        return embedding_layer(1, "dense_1", kernel_init=zeros)(hidden)[..., 0]
