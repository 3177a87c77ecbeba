"""A second output of a network, computed from its last hidden features."""

from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.convolution import Conv, zeros


class Head(nn.Module):
    """Two 3x3 convolutions with a SiLU between them, from features to an image.

    The output is 0 before training, as that of the U-Nets.

    Attributes:
      width: channels between the convolutions.
    """

    width: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "B H W D"], like: Float[Array, "B H W C"]
    ) -> Float[Array, "B H W C"]:
        """Returns an image of the channels of `like`, in float32."""
        h = nn.silu(Conv(self.width, name="hidden")(features))
        return Conv(like.shape[-1], kernel_init=zeros, name="out")(h)
