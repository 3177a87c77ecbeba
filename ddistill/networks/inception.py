"""The Inception network of FID: the TensorFlow graph of 5 December 2015, in Flax.

It is Inception v3 (arXiv 1512.00567) with four properties of that graph which other versions lack,
and on each of which the distance depends (arXiv 2104.11222 on resizing):

* images are resized to 299 x 299 as TensorFlow 1 did, see `resize_tf1`;
* average pools leave padding out of their means;
* the last block has a max-pool where the paper has an average;
* there are 1008 classes.

Its batch norms (epsilon 1e-3) are part of the kernels and biases here;
`ddistill.interop.inception` folds them in when it reads the weights.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import check_choice
from ddistill.networks.weights import variable_shapes

SIDE = 299
NUM_CLASSES = 1008
# Where activations can be had, by torch-fidelity's names, and how many there are.
TAPS = {
    "64": 64,
    "192": 192,
    "768": 768,
    "2048": 2048,
    "logits_unbiased": NUM_CLASSES,
    "logits": NUM_CLASSES,
}


def resize_tf1(x: Float[Array, "B H W C"], side: int = SIDE) -> Float[Array, "B S S C"]:
    """Bilinear resizing as TensorFlow 1 did it: no half-pixel centres, no antialiasing.

    Output pixel i lies at i * H / side of the input; beyond the last input pixel that one is
    repeated. `jax.image.resize`, torch and Pillow all give other images.
    """
    rows, columns = (_positions(size, side) for size in x.shape[1:3])
    x = _interpolate(x, *columns, axis=2)
    return _interpolate(x, *rows, axis=1)


def _positions(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output pixel its two neighbours and the share of the second; float32 as in TF."""
    place = np.arange(side, dtype=np.float32) * np.float32(size / side)
    low = place.astype(np.int32)
    return low, np.minimum(low + 1, size - 1), place - low.astype(np.float32)


def _interpolate(x: Array, low: np.ndarray, high: np.ndarray, share: np.ndarray, axis: int):
    shape = [1] * x.ndim
    shape[axis] = -1
    first = jnp.take(x, low, axis=axis)
    return first + (jnp.take(x, high, axis=axis) - first) * share.reshape(shape)


class Inception(nn.Module):
    """See the module's docstring.

    Attributes:
      taps: which activations are wanted, of `TAPS`; what lies behind the last one is not computed.
    """

    taps: tuple[str, ...] = ("2048",)

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B D"]]:
        """Returns activations by tap: `[B, TAPS[tap]]`, averaged over pixels, float32.

        Args:
          images: pixel values 0..255 of any size, uint8 or float.

        Raises:
          ConfigError: an unknown tap.
        """
        for tap in self.taps:
            check_choice("taps", tap, TAPS)
        wanted, found = set(self.taps), {}
        x = (resize_tf1(images.astype(jnp.float32)) - 128.0) / 128.0
        for tap, part in (("64", _stem), ("192", _second), ("768", _middle), ("2048", _last)):
            x = part(x)
            if tap in wanted:
                found[tap] = jnp.mean(x, axis=(1, 2))
            if wanted <= set(found):
                return found
        logits, bias = Head(name="fc")(jnp.mean(x, axis=(1, 2)))
        found |= {"logits_unbiased": logits, "logits": logits + bias}
        return {tap: found[tap] for tap in self.taps}


def _stem(x: Array) -> Array:
    x = ConvReLU(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
    x = ConvReLU(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
    return max_pool(ConvReLU(64, (3, 3), name="Conv2d_2b_3x3")(x))


def _second(x: Array) -> Array:
    x = ConvReLU(80, name="Conv2d_3b_1x1")(x)
    return max_pool(ConvReLU(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))


def _middle(x: Array) -> Array:
    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = BlockA(pooled, name=name)(x)
    x = BlockB(name="Mixed_6a")(x)
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = BlockC(inner, name=name)(x)
    return x


def _last(x: Array) -> Array:
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(pool="average", name="Mixed_7b")(x)
    return BlockE(pool="max", name="Mixed_7c")(x)


class ConvReLU(nn.Module):
    """Convolution with a bias, and ReLU.

    Attributes:
      features: output channels.
      size: kernel height and width, odd.
      stride: in both directions.
      padding: "SAME" (of zeros, alike on both sides) or "VALID".
    """

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def weights(self, channels: int) -> tuple[Array, Array]:
        """Kernel `[kh, kw, channels, features]` and bias `[features]`."""
        shape = (*self.size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Returns the convolved image."""
        kernel, bias = self.weights(x.shape[-1])
        if self.size == (1, 1):
            return nn.relu(jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0]) + bias)
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return nn.relu(x + bias)


class Head(nn.Module):
    """The linear layer; its bias is given apart, because the inception score leaves it out."""

    @nn.compact
    def __call__(self, x: Float[Array, "B C"]) -> tuple[Float[Array, "B K"], Float[Array, " K"]]:
        """Returns logits without bias, and the bias."""
        shape = (x.shape[-1], NUM_CLASSES)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return x @ kernel, self.param("bias", nn.initializers.zeros_init(), (NUM_CLASSES,))


def side_by_side(x: Float[Array, "B H W C"], convs: Sequence[ConvReLU]) -> list[Array]:
    """Several 1x1 convolutions of the same image as one matrix product, before their ReLUs."""
    kernels, biases = zip(*(conv.weights(x.shape[-1]) for conv in convs))
    made = jnp.einsum("bhwc,cd->bhwd", x, jnp.concatenate(kernels, axis=-1)[0, 0])
    ends = np.cumsum([conv.features for conv in convs])[:-1].tolist()
    return jnp.split(made + jnp.concatenate(biases), ends, axis=-1)


class BlockA(nn.Module):
    """35 x 35 pixels. `pooled` are the channels of the branch that pools."""

    pooled: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Returns `[B, H, W, 224 + pooled]`."""
        one, five, three, pool = side_by_side(
            x,
            [
                ConvReLU(64, name="branch1x1"),
                ConvReLU(48, name="branch5x5_1"),
                ConvReLU(64, name="branch3x3dbl_1"),
                ConvReLU(self.pooled, name="branch_pool"),
            ],
        )
        five = ConvReLU(64, (5, 5), name="branch5x5_2")(nn.relu(five))
        three = ConvReLU(96, (3, 3), name="branch3x3dbl_2")(nn.relu(three))
        three = ConvReLU(96, (3, 3), name="branch3x3dbl_3")(three)
        return _joined(nn.relu(one), five, three, nn.relu(average_pool(pool)))


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17 pixels."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Returns `[B, h, w, 480 + C]`."""
        three = ConvReLU(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        double = ConvReLU(64, name="branch3x3dbl_1")(x)
        double = ConvReLU(96, (3, 3), name="branch3x3dbl_2")(double)
        double = ConvReLU(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return _joined(three, double, max_pool(x))


class BlockC(nn.Module):
    """17 x 17 pixels, with kernels of 1 x 7 and 7 x 1 that have `inner` channels between them."""

    inner: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """Returns `[B, H, W, 768]`."""
        one, seven, double, pool = side_by_side(
            x,
            [
                ConvReLU(192, name="branch1x1"),
                ConvReLU(self.inner, name="branch7x7_1"),
                ConvReLU(self.inner, name="branch7x7dbl_1"),
                ConvReLU(192, name="branch_pool"),
            ],
        )
        seven = ConvReLU(self.inner, (1, 7), name="branch7x7_2")(nn.relu(seven))
        seven = ConvReLU(192, (7, 1), name="branch7x7_3")(seven)
        double = ConvReLU(self.inner, (7, 1), name="branch7x7dbl_2")(nn.relu(double))
        double = ConvReLU(self.inner, (1, 7), name="branch7x7dbl_3")(double)
        double = ConvReLU(self.inner, (7, 1), name="branch7x7dbl_4")(double)
        double = ConvReLU(192, (1, 7), name="branch7x7dbl_5")(double)
        return _joined(nn.relu(one), seven, double, nn.relu(average_pool(pool)))


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8 pixels."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Returns `[B, h, w, 512 + C]`."""
        three, seven = side_by_side(
            x, [ConvReLU(192, name="branch3x3_1"), ConvReLU(192, name="branch7x7x3_1")]
        )
        three = ConvReLU(320, (3, 3), 2, "VALID", name="branch3x3_2")(nn.relu(three))
        seven = ConvReLU(192, (1, 7), name="branch7x7x3_2")(nn.relu(seven))
        seven = ConvReLU(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = ConvReLU(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return _joined(three, seven, max_pool(x))


class BlockE(nn.Module):
    """8 x 8 pixels, with branches that fork; `pool` is "average", or "max" in the last block."""

    pool: str

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W 2048"]:
        """Returns `[B, H, W, 2048]`."""
        convs = [
            ConvReLU(320, name="branch1x1"),
            ConvReLU(384, name="branch3x3_1"),
            ConvReLU(448, name="branch3x3dbl_1"),
        ]
        pooling = ConvReLU(192, name="branch_pool")
        if self.pool == "average":
            one, three, double, pool = side_by_side(x, [*convs, pooling])
            pool = nn.relu(average_pool(pool))
        else:  # a maximum of channels is none of their sums: nothing to swap
            one, three, double = side_by_side(x, convs)
            pool = pooling(max_pool(x, stride=1, padding=1))
        three = nn.relu(three)
        forked = [
            ConvReLU(384, (1, 3), name="branch3x3_2a")(three),
            ConvReLU(384, (3, 1), name="branch3x3_2b")(three),
        ]
        double = ConvReLU(384, (3, 3), name="branch3x3dbl_2")(nn.relu(double))
        forked += [
            ConvReLU(384, (1, 3), name="branch3x3dbl_3a")(double),
            ConvReLU(384, (3, 1), name="branch3x3dbl_3b")(double),
        ]
        return _joined(nn.relu(one), *forked, pool)


def max_pool(x: Float[Array, "B H W C"], stride: int = 2, padding: int = 0) -> Array:
    """Largest of 3 x 3 pixels; padding never wins."""
    return _separable(x, jnp.maximum, stride, padding, -jnp.inf)


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Mean of the up to 3 x 3 pixels round each that lie in the image.

    A 1x1 convolution with a bias may as well come before it as after: both are linear, and a mean
    that leaves padding out keeps constants. It is cheaper before, on fewer channels.
    """
    counts = [np.full(size, 3.0, np.float32) for size in x.shape[1:3]]
    for count in counts:
        count[0] -= 1.0
        count[-1] -= 1.0
    area = counts[0][:, None, None] * counts[1][None, :, None]
    return _separable(x, jnp.add, 1, 1, 0.0) / area


def _separable(
    x: Array, combine: Callable[[Array, Array], Array], stride: int, padding: int, fill: float
) -> Array:
    """Combines 3 columns, then 3 rows: XLA's CPU code for windows is several times slower."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    for axis in (2, 1):
        length = (x.shape[axis] - 3) // stride * stride + 1
        first, second, third = (
            jax.lax.slice_in_dim(x, start, start + length, stride, axis) for start in range(3)
        )
        x = combine(combine(first, second), third)
    return x


def _joined(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


def shapes(taps: Sequence[str] = tuple(TAPS)) -> Mapping:
    """The parameters that `Inception(taps)` takes, as a tree of shapes."""
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.uint8)
    return variable_shapes(Inception(tuple(taps)), image)["params"]  # type: ignore[no-any-return]
