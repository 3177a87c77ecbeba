"""EfficientNet-Lite0 in Flax: features of natural images for scores and feature distances.

EfficientNet-Lite0 is EfficientNet-B0 (arXiv 1905.11946) with ReLU6 in place of swish and without
squeeze-and-excitation. Its blocks are inverted residual bottlenecks (arXiv 1801.04381): a 1x1
convolution to more channels, a depthwise convolution, and a linear 1x1 convolution to fewer.

Batch norms (epsilon 1e-3) are part of the kernels and biases;
`ddistill.interop.efficientnet_lite` folds them in when it reads the weights.
"""

import functools
import operator
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError
from ddistill.networks.classifier import Classified, with_taps
from ddistill.networks.weights import variable_shapes

NAME = "efficientnet_lite0"
SIDE = 224
DIM = 1280
NUM_CLASSES = 1000
STEM = 32
# Below, the depthwise convolutions see one pixel.
LEAST_SIDE = 32


class Stage(NamedTuple):
    """A row of the table of the architecture (arXiv 1905.11946, table 1).

    Attributes:
      blocks: number of blocks.
      kernel: side of the depthwise kernels.
      stride: stride of the first block; the others have 1.
      expansion: channels inside of a block, in multiples of its input channels.
      features: output channels.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, a classifier of natural images that gives features.

    Attributes:
      side: side in pixels to which images are resized before the first convolution; the weights
        were trained at 224. A smaller side is faster and gives other features.
    """

    side: int = SIDE

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool = False, taps: tuple[str, ...] = ()
    ) -> Classified:
        """Classifies images in [-1, 1].

        Args:
          x: images of any size with 1 or 3 channels; a grey image gets three equal channels.
          train: ignored, because the network has neither dropout nor running statistics here.
          taps: names of features to return too: "final_map", of which the features are averages.

        Returns:
          `[B, 1000]` logits of ImageNet's 1,000 classes, and the `[B, 1280]` features that they are
          linear in: the mean over pixels of the last convolution after its ReLU6.

        Raises:
          ConfigError: images of another form, or a side below 32.
        """
        del train
        if self.side < LEAST_SIDE:
            raise ConfigError(f"network.side={self.side} must be {LEAST_SIDE} or more.")
        if x.ndim != 4 or x.shape[-1] not in (1, 3):
            raise ConfigError(f"EfficientNet-Lite0 takes [B, H, W, 1 or 3]; got {x.shape}.")
        x = prepare(x, self.side)
        x = _relu6(Conv(STEM, 3, 2, name="stem")(x))
        index = 0
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = 1 if i else stage.stride
                x = Block(stage, stride, name=f"block_{index}")(x)
                index += 1
        x = _relu6(Conv(DIM, 1, name="head")(x))
        features = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(NUM_CLASSES, name="logits")(features)
        return with_taps((logits, features), x, taps)


class Block(nn.Module):
    """An inverted residual bottleneck.

    Attributes:
      stage: the row of the table that it belongs to.
      stride: of the depthwise convolution.
    """

    stage: Stage
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Returns the block's output; the input is added where the shapes agree."""
        h = x
        if self.stage.expansion > 1:
            h = _relu6(Conv(x.shape[-1] * self.stage.expansion, 1, name="expand")(h))
        h = _relu6(Depthwise(self.stage.kernel, self.stride, name="depthwise")(h))
        h = Conv(self.stage.features, 1, name="project")(h)
        return h + x if h.shape == x.shape else h


class Conv(nn.Module):
    """A convolution with a bias, padded as TensorFlow's SAME.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: in both directions.
    """

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Returns the convolution."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.size == 1:
            return x @ kernel[0, 0] + bias
        strides = (self.stride, self.stride)
        out = jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out + bias


class Depthwise(nn.Module):
    """A convolution of each channel with a kernel of its own, padded as TensorFlow's SAME.

    Attributes:
      size: side of the kernels.
      stride: in both directions.
    """

    size: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Returns the convolution."""
        channels = x.shape[-1]
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (self.size, self.size, 1, channels)
        )
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return _depthwise(x, kernel[:, :, 0], self.stride) + bias


def _depthwise(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k C"], stride: int
) -> Float[Array, "B h w C"]:
    """The depthwise convolution as a sum of shifted images.

    XLA's CPU code for grouped convolutions takes two to fifteen times as long, and its GPU code
    fuses the sum into one kernel.
    """
    size = len(kernel)
    outputs = [-(-side // stride) for side in x.shape[1:3]]
    totals = [max((out - 1) * stride + size - side, 0) for out, side in zip(outputs, x.shape[1:3])]
    x = jnp.pad(x, ((0, 0), *((total // 2, total - total // 2) for total in totals), (0, 0)))
    height, width = ((out - 1) * stride + 1 for out in outputs)
    shifted = (
        x[:, i : i + height : stride, j : j + width : stride] * kernel[i, j]
        for i in range(size)
        for j in range(size)
    )
    return functools.reduce(operator.add, shifted)


def prepare(x: Float[Array, "B H W C"], side: int = SIDE) -> Float[Array, "B side side 3"]:
    """Images in [-1, 1] as the network's input.

    Bicubic resizing (a = -0.5, half-pixel centres, antialiased where it makes images smaller, not
    clipped), then (v - 127) / 128 of values v in [0, 255], the scale of the network's training.

    Args:
      x: images of any size with 1 or 3 channels.
      side: height and width of the result.
    """
    x = jax.image.resize(x, (x.shape[0], side, side, x.shape[-1]), "cubic")
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    return (127.5 * x + 0.5) / 128.0


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0.0, 6.0)


def shapes() -> Mapping:
    """The parameters that `EfficientNetLite0` takes, as a tree of shapes."""
    image = jax.ShapeDtypeStruct((1, LEAST_SIDE, LEAST_SIDE, 3), np.float32)
    return variable_shapes(EfficientNetLite0(), image)["params"]  # type: ignore[no-any-return]
