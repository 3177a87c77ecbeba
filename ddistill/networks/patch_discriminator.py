"""A discriminator of images that judges patches (pix2pix, arXiv 1611.07004)."""

import math

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.convolution import Conv
from ddistill.networks.layers import GroupNorm

# Slope of the leaky ReLU below zero.
_SLOPE = 0.2
_MOST_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Logits of "real", one for each patch of an image.

    As in pix2pix, every layer is a 4x4 convolution of stride 2, and widths double up to eight times
    the first one. Group norm takes the place of batch norm, so that the logit of an image does not
    depend on the rest of the batch.

    Attributes:
      width: channels of the first layer.
      layers: convolutions of stride 2.
      conv_impl: of the convolutions, see `ddistill.networks.convolution`.
    """

    width: int = 64
    layers: int = 3
    conv_impl: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w 1"]:
        """Logits of images in [-1, 1]; h is H / 2^layers, rounded up."""
        for i in range(self.layers):
            width = self.width * min(2**i, 8)
            x = Conv(width, size=4, stride=2, impl=self.conv_impl, name=f"halve_{i}")(x)
            if i:  # pix2pix has no norm in its first layer
                x = GroupNorm(math.gcd(_MOST_GROUPS, width), 1e-5, name=f"norm_{i}")(x)
            x = jax.nn.leaky_relu(x, _SLOPE)
        return Conv(1, impl=self.conv_impl, name="logits")(x)
