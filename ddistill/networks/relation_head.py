"""The head through which RDD compares a student's feature maps with a queue."""

from flax import linen as nn
from jaxtyping import Array, Float


class RelationHead(nn.Module):
    """Two 1x1 convolutions with a batch norm and a ReLU between them, in training mode.

    Attributes:
      width: channels of input and output (arXiv 2410.07679, released code).
    """

    width: int

    @nn.compact
    def __call__(self, features: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        """Returns features of the same shape; the norm uses the batch's own statistics."""
        h = nn.Dense(self.width, name="in")(features)  # a 1x1 convolution
        # The step is one program, so that the mean is over the parts of the batch on all devices.
        h = nn.BatchNorm(
            use_running_average=False,
            momentum=0.9,
            epsilon=1e-5,
            # E[x^2] - E[x]^2 cancels in float32 where a channel's mean is large.
            use_fast_variance=False,
            name="norm",
        )(h)
        return nn.Dense(self.width, use_bias=False, name="out")(nn.relu(h))
