"""The building blocks that the networks share: group norm, attention, time embedding.

Parameters are float32 always. `dtype` is what convolutions and matrix products compute in; norm
statistics, softmax and the embedding of time, class and extra inputs stay in float32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError
from ddistill.networks.convolution import Conv, glorot, zeros
from ddistill.typing import Labels


class GroupNorm(nn.Module):
    """Group normalisation (arXiv 1803.08494) with float32 statistics, optionally conditioned.

    Attributes:
      groups: number of groups; has to divide the channels.
      eps: added to the variance.
      dtype: dtype of the result.
    """

    groups: int
    eps: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], silu: bool = False, scale_shift=None) -> Array:
        """Normalises, applies the learnt affine map, then `(1 + s) y + t`, then SiLU.

        Args:
          x: the activations.
          silu: whether SiLU follows.
          scale_shift: pair (s, t) of `[B, C]`, or None.

        Raises:
          ConfigError: `groups` does not divide the channels.
        """
        channels = x.shape[-1]
        if self.groups < 1 or channels % self.groups:
            allowed = [g for g in range(1, min(channels, 64) + 1) if channels % g == 0]
            raise ConfigError(
                f"norm_groups={self.groups} does not divide the {channels} channels of "
                f"'{'/'.join(self.path)}'. Allowed here: {allowed}. Change norm_groups, or "
                "channels and multipliers so that every channel count divides."
            )
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", zeros, (channels,))
        y = _normalised(x, scale, bias, scale_shift, self.groups, self.eps)
        return (nn.silu(y) if silu else y).astype(self.dtype)


# A program of its own, so that the many norms of a network with equal shapes are traced once.
@functools.partial(jax.jit, static_argnums=(4, 5))
def _normalised(
    x: Float[Array, "B H W C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    scale_shift: tuple[Float[Array, "B C"], Float[Array, "B C"]] | None,
    groups: int,
    eps: float,
) -> Float[Array, "B H W C"]:
    """`x` with mean 0 and variance 1 in each group, then both affine maps."""
    x = x.astype(jnp.float32)
    # Pixels are summed first, channels of a group after that: reducing over both at once, with
    # the few channels of a group innermost, takes XLA CPU six times as long.
    mean = _group_mean(jnp.mean(x, axis=(1, 2)), groups)
    centred = x - mean[:, None, None, :]
    var = _group_mean(jnp.mean(jnp.square(centred), axis=(1, 2)), groups)
    gain, shift = jax.lax.rsqrt(var + eps) * scale, bias
    if scale_shift is not None:
        s, t = (v.astype(jnp.float32) for v in scale_shift)
        gain, shift = gain * (1.0 + s), (bias * (1.0 + s) + t)[:, None, None, :]
    return centred * gain[:, None, None, :] + shift


def _group_mean(x: Float[Array, "B C"], groups: int) -> Float[Array, "B C"]:
    """The mean over each group's channels, once for every channel of the group."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = jnp.mean(grouped, axis=-1, keepdims=True)
    return jnp.broadcast_to(mean, grouped.shape).reshape(x.shape)


class Attention(nn.Module):
    """Residual self-attention over all pixels, as in DDPM: norm, q k v, softmax, zero projection.

    Attributes:
      head_dim: channels per head; 0 for a single head.
      groups, eps: of the norm; without one where `groups` is 0.
      dtype: compute dtype; the softmax is float32.
    """

    head_dim: int
    groups: int
    eps: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Returns x plus what the pixels attend to.

        Raises:
          ConfigError: `head_dim` does not divide the channels.
        """
        batch, height, width, channels = x.shape
        head_dim = self.head_dim or channels
        if channels % head_dim:
            raise ConfigError(
                f"head_dim={self.head_dim} does not divide the {channels} channels of "
                f"'{'/'.join(self.path)}'. Use a divisor of {channels}, or 0 for a single head."
            )
        h = GroupNorm(self.groups, self.eps, self.dtype, name="norm")(x) if self.groups else x
        qkv = Conv(3 * channels, size=1, dtype=self.dtype, name="qkv")(h)
        qkv = qkv.reshape(batch, height * width, 3, channels // head_dim, head_dim)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * head_dim**-0.5, k)
        weights = nn.softmax(logits.astype(jnp.float32), axis=-1).astype(self.dtype)
        h = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return x + Conv(channels, 1, kernel_init=zeros, dtype=self.dtype, name="out")(h)


def sinusoidal_embedding(
    time: Float[Array, " B"],
    features: int,
    max_period: float = 10000.0,
    cosines_first: bool = False,
    includes_last: bool = True,
) -> Float[Array, "B F"]:
    """Sines, then cosines, of `time` at frequencies 1 ... 1/max_period (DDPM, tensor2tensor).

    Args:
      time: real-valued times; float32.
      features: even and at least 4.
      max_period: the inverse of the lowest frequency.
      cosines_first: cosines, then sines (ADM, and diffusers' `flip_sin_to_cos`).
      includes_last: whether 1/max_period is the lowest frequency, or the one that would follow it
        (ADM, and diffusers' `freq_shift=0`).
    """
    half = features // 2
    steps = half - 1 if includes_last else half
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / steps)
    angles = time.astype(jnp.float32)[:, None] * frequencies
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if cosines_first else waves, axis=-1)


def embedding_layer(
    features: int,
    name: str,
    use_bias: bool = True,
    kernel_init: nn.initializers.Initializer = glorot,
) -> nn.Dense:
    """A linear layer of an embedding: float32 with all digits on every device.

    Sinusoids of neighbouring times differ by less than the rounding of bfloat16, in which TPUs
    compute products of float32 by default.
    """
    return nn.Dense(
        features,
        use_bias,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        kernel_init=kernel_init,
        name=name,
    )


def embed_waves(
    waves: Float[Array, "B F"], width: int, kernel_init: nn.initializers.Initializer = glorot
) -> Float[Array, "B E"]:
    """Layers "time_0" and "time_1" of `width`, with SiLU between; for compact methods."""
    hidden = nn.silu(embedding_layer(width, "time_0", kernel_init=kernel_init)(waves))
    embedded: Array = embedding_layer(width, "time_1", kernel_init=kernel_init)(hidden)
    return embedded


def embed_class(
    cond: Labels | None,
    embedding: Float[Array, "B E"],
    num_classes: int,
    init: nn.initializers.Initializer = nn.linear.default_embed_init,
) -> Float[Array, "B E"]:
    """Adds a row of the table "class"; for compact methods.

    Args:
      cond: class ids in 0 ... num_classes; None for the null class, `num_classes`.
      embedding: of the time.
      num_classes: 0 for an unconditional network, which has no table.
      init: of the table.
    """
    if not num_classes:
        return embedding
    count, width = embedding.shape
    ids = jnp.full(count, num_classes, jnp.int32) if cond is None else cond
    table = nn.Embed(num_classes + 1, width, dtype=jnp.float32, embedding_init=init, name="class")
    return embedding + table(ids)


def downsample(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Mean over 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
