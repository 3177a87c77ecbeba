"""Convolution, in forms that are fast on CPU, GPU and TPU.

Parameters are always float32; `dtype` is the compute dtype.
"""

from collections.abc import Callable
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.ungrouped import Pads, ungrouped_conv, xla_conv


def traced_once(init: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """An initialiser that is traced once for each shape.

    Flax asks the initialiser of every parameter for its shape whenever a network is called.
    """
    return jax.jit(init, static_argnums=(1, 2))  # type: ignore[no-any-return]


# Glorot uniform, as DDPM: variance 1 / mean(fan_in, fan_out).
glorot = traced_once(nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"))
zeros = nn.initializers.zeros_init()

CONV_IMPLS = ("auto", "xla", "matmul", "ungrouped")


class ConvOptions(TypedDict, total=False):
    """Keyword arguments of `Conv` that differ within a network."""

    size: int
    stride: int
    kernel_init: nn.initializers.Initializer
    symmetric: bool
    upsampled: bool


class Conv(nn.Module):
    """Convolution with "SAME" padding and a bias.

    Stride 2 on an even size pads at the bottom and the right only where the kernel is odd, as
    TensorFlow and DDPM do, and all around alike where it is even or where it is `symmetric`.

    Attributes:
      features: output channels.
      size: kernel width and height.
      stride: 1 or 2.
      kernel_init: initialiser of the `[size, size, C_in, C_out]` kernel.
      dtype: compute dtype.
      impl: "xla", "matmul", "ungrouped" or "auto"; same results, other speed.
      symmetric: pad `size // 2` on every side, as PyTorch's networks do.
      upsampled: double the image first, see `upsample`; for size 3 and stride 1.
    """

    features: int
    size: int = 3
    stride: int = 1
    kernel_init: nn.initializers.Initializer = glorot
    dtype: str = "float32"
    impl: str = "auto"
    symmetric: bool = False
    upsampled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Returns `[B, H/stride, W/stride, features]`, or twice the size where it is upsampled."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        full = self.param("kernel", self.kernel_init, shape)
        kernel = full.astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        impl = "matmul" if self.size == 1 else conv_impl(self.impl, shape)
        convolve = {"matmul": matmul_conv, "ungrouped": ungrouped_conv, "xla": xla_conv}[impl]
        pads = ((self.size // 2, self.size // 2),) * 2 if self.symmetric else None
        if self.upsampled and self.impl != "xla" and jax.default_backend() == "cpu":
            return upsampled_conv(convolve, x, full) + bias
        x = upsample(x) if self.upsampled else x
        return convolve(x, kernel, self.stride, pads) + bias


def conv_impl(impl: str, kernel_shape: tuple[int, ...]) -> str:
    """Resolves "auto": matmul on CPU for a kernel with few input channels, XLA's otherwise.

    docs/benchmarks.md has the measurements. The choice is made while tracing, from the default
    backend; name an implementation when compiling for another platform than that.
    """
    if impl != "auto":
        return impl
    few = kernel_shape[2] <= 4
    return "matmul" if few and jax.default_backend() == "cpu" else "xla"


def matmul_conv(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "k k C D"],
    stride: int,
    pads: Pads | None = None,
) -> Array:
    """The same as one matrix product over patches, which are shifted copies side by side."""
    size = kernel.shape[0]
    padding = pads or jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    out = [(side - size) // stride + 1 for side in x.shape[1:3]]
    rows, columns = (stride * (n - 1) + 1 for n in out)
    shifted = [
        x[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.concatenate(shifted, axis=-1) if size > 1 else shifted[0]
    return jnp.einsum("bhwc,cd->bhwd", patches, kernel.reshape(-1, kernel.shape[-1]))


def upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Every pixel twice in both directions (nearest neighbour)."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def upsampled_conv(
    convolve: Callable[..., Array], x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]
) -> Float[Array, "B h w D"]:
    """`convolve(upsample(x), kernel)` with 4/9 of the operations.

    In the doubled image, a 3x3 window covers 2x2 different pixels only. So the pixels of an even
    (or odd) row and column are a convolution of `x` with a 2x2 kernel, whose entries are sums of
    `kernel`'s; they are summed in its dtype and then given that of `x`.
    """

    def folded(k: Array, odd: int) -> Array:
        """The two rows of `k` that a pixel in an even or odd row needs."""
        return jnp.stack([k[0] + k[1], k[2]] if odd else [k[0], k[1] + k[2]])

    def quarter(row: int, column: int) -> Array:
        k = jnp.swapaxes(folded(kernel, row), 0, 1)
        k = jnp.swapaxes(folded(k, column), 0, 1)
        return convolve(x, k.astype(x.dtype), 1, ((1 - row, row), (1 - column, column)))

    y = jnp.stack([jnp.stack([quarter(i, j) for j in (0, 1)], axis=3) for i in (0, 1)], axis=2)
    batch, height, width = x.shape[:3]
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def for_platform(module: nn.Module, platform: str, vmapped: bool) -> nn.Module:
    """A network with convolutions, unless they were chosen, that are fast where they are to run.

    Args:
      module: a network; one without `conv_impl` is returned as it is.
      platform: "cpu", "gpu" or "tpu", which need not be jax's default.
      vmapped: whether its weights are; TPUs take grouped convolutions well.
    """
    if getattr(module, "conv_impl", "") != "auto":
        return module
    if platform == "tpu":
        return module.clone(conv_impl="xla")
    return module.clone(conv_impl="ungrouped") if vmapped else module
