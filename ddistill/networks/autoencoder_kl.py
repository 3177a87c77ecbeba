"""The autoencoder of latent diffusion (arXiv 2112.10752), regularised by a KL divergence.

Latents here are not scaled: a diffusion model is trained on them times a factor that belongs to the
model (`ddistill.interop.stable_diffusion`).
"""

from dataclasses import dataclass, fields
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.attention import ATTENTION_IMPLS, attend
from ddistill.networks.convolution import CONV_IMPLS, Conv, ConvOptions, glorot
from ddistill.networks.layers import GroupNorm
from ddistill.networks.unet import DTYPES, check_at_least

_NORM_EPS = 1e-6
# Bounds of a latent's log-variance.
_LOG_VARIANCE = (-30.0, 20.0)


@dataclass(frozen=True)
class _Config:
    """The options that encoder and decoder share, as in `AutoencoderKL`."""

    widths: tuple[int, ...]
    blocks: int
    norm_groups: int
    mid_attention: bool
    remat: bool
    dtype: str
    conv_impl: str
    attention_impl: str

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.norm_groups, _NORM_EPS, self.dtype, name=name)

    def conv(self, features: int, name: str, **options: Unpack[ConvOptions]) -> Conv:
        return Conv(features, dtype=self.dtype, impl=self.conv_impl, name=name, **options)

    def block(self, features: int, name: str) -> nn.Module:
        cls = nn.remat(_Block) if self.remat else _Block
        return cls(features, self, name=name)

    def middle(self, h: Array) -> Array:
        """Residual block, attention, residual block, inside the module that calls."""
        h = self.block(h.shape[-1], "mid_0")(h)
        if self.mid_attention:
            cls = nn.remat(_Attention) if self.remat else _Attention
            h = cls(self, name="mid_attention")(h)
        return self.block(h.shape[-1], "mid_1")(h)


class AutoencoderKL(nn.Module):
    """Autoencoder of Stable Diffusion: pictures to Gaussians over latents, and latents to pictures.

    Defaults are the autoencoder of Stable Diffusion 1.5: 83,653,863 parameters, latents of an
    eighth of the height and width.

    Attributes:
      widths: channels per level, outermost first; each further level halves the size.
      blocks: residual blocks per level of the encoder (one more in the decoder).
      latent_channels: channels of the latents.
      out_channels: channels of the pictures.
      norm_groups: of every group norm; eps is 1e-6.
      mid_attention: whether the middles of encoder and decoder have attention.
      quant_conv: whether a convolution of size 1 comes after the encoder and before the decoder.
      remat: recompute each block in the backward pass.
      dtype: of convolutions and matrix products: "float32" or "bfloat16".
      conv_impl, attention_impl: as in `ddistill.networks.text_unet.TextUNet`.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    latent_channels: int = 4
    out_channels: int = 3
    norm_groups: int = 32
    mid_attention: bool = True
    quant_conv: bool = True
    remat: bool = False
    dtype: str = "float32"
    conv_impl: str = "auto"
    attention_impl: str = "auto"

    def setup(self) -> None:
        """Makes the parts; called by Flax."""
        check_autoencoder(self)
        config = _Config(**{f.name: getattr(self, f.name) for f in fields(_Config)})
        self.encoder = _Encoder(config, 2 * self.latent_channels)
        self.decoder = _Decoder(config, self.out_channels)
        if self.quant_conv:
            self.quant = Conv(2 * self.latent_channels, size=1, dtype=self.dtype)
            self.post_quant = Conv(self.latent_channels, size=1, dtype=self.dtype)

    @property
    def factor(self) -> int:
        """Height of a picture over the height of its latent."""
        return 2 ** (len(self.widths) - 1)

    def __call__(
        self, x: Float[Array, "B H W C"], noise: Float[Array, "B h w c"] | None = None
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B h w c2"]]:
        """Encodes and decodes pictures.

        Args:
          x: pictures in [-1, 1].
          noise: standard normal, for latents drawn from their Gaussians; None for the means.

        Returns:
          The reconstructions, and the moments of `encode`.
        """
        moments = self.encode(x)
        return self.decode(draw(moments, noise)), moments

    def encode(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c2"]:
        """The means and log-variances of latents, side by side in the channels, in float32.

        Args:
          x: pictures in [-1, 1]; H and W divide by `factor`.

        Raises:
          ConfigError: a size that does not divide, or another number of channels.
        """
        if (
            x.ndim != 4
            or x.shape[-1] != self.out_channels
            or any(n % self.factor for n in x.shape[1:3])
        ):
            raise ConfigError(
                f"Pictures of shape {x.shape} cannot be encoded: [B, H, W, {self.out_channels}] is "
                f"needed, with H and W that divide by {self.factor}."
            )
        h = self.encoder(x)
        return (self.quant(h) if self.quant_conv else h).astype(jnp.float32)

    def decode(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        """Pictures, about in [-1, 1] and not clipped, in float32.

        Args:
          z: latents, not scaled.

        Raises:
          ConfigError: another number of channels.
        """
        if z.ndim != 4 or z.shape[-1] != self.latent_channels:
            raise ConfigError(
                f"Latents of shape {z.shape} cannot be decoded: [B, h, w, {self.latent_channels}] "
                "is needed."
            )
        h = self.post_quant(z) if self.quant_conv else z
        return self.decoder(h).astype(jnp.float32)


def gaussian(
    moments: Float[Array, "B h w c2"],
) -> tuple[Float[Array, "B h w c"], Float[Array, "B h w c"]]:
    """Mean and log-variance of `AutoencoderKL.encode`'s moments, the latter within [-30, 20]."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, *_LOG_VARIANCE)


def draw(
    moments: Float[Array, "B h w c2"], noise: Float[Array, "B h w c"] | None
) -> Float[Array, "B h w c"]:
    """A latent of the Gaussian with these moments: mean plus deviation times `noise`.

    Args:
      moments: of `AutoencoderKL.encode`.
      noise: standard normal; None for the mean.
    """
    mean, log_variance = gaussian(moments)
    return mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise


class _Encoder(nn.Module):
    """Pictures to moments."""

    config: _Config
    out_channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c2"]:
        c = self.config
        h = c.conv(c.widths[0], "conv_in")(x)
        for i, width in enumerate(c.widths):
            for j in range(c.blocks):
                h = c.block(width, f"down_{i}_{j}")(h)
            if i != len(c.widths) - 1:
                h = c.conv(width, f"down_{i}_resample", stride=2)(h)
        h = c.norm("norm_out")(c.middle(h), silu=True)
        return c.conv(self.out_channels, "conv_out")(h)


class _Decoder(nn.Module):
    """Latents to pictures."""

    config: _Config
    out_channels: int

    @nn.compact
    def __call__(self, z: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        c = self.config
        h = c.middle(c.conv(c.widths[-1], "conv_in")(z))
        for i, width in reversed(list(enumerate(c.widths))):
            for j in range(c.blocks + 1):
                h = c.block(width, f"up_{i}_{j}")(h)
            if i != 0:
                h = c.conv(width, f"up_{i}_resample", upsampled=True)(h)
        return c.conv(self.out_channels, "conv_out")(c.norm("norm_out")(h, silu=True))


class _Block(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input."""

    features: int
    config: _Config

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        c = self.config
        h = c.conv(self.features, "conv1")(c.norm("norm1")(x, silu=True))
        h = c.conv(self.features, "conv2")(c.norm("norm2")(h, silu=True))
        if x.shape[-1] != self.features:
            x = c.conv(self.features, "shortcut", size=1)(x)
        return x + h


class _Attention(nn.Module):
    """Residual self-attention over all pixels with a single head."""

    config: _Config

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        c = self.config
        batch, height, width, channels = x.shape

        def dense(name: str) -> nn.Dense:
            return nn.Dense(channels, dtype=c.dtype, kernel_init=glorot, name=name)

        h = c.norm("norm")(x).reshape(batch, height * width, channels)
        q, k, v = (dense(name)(h)[:, :, None, :] for name in ("q", "k", "v"))
        h = attend(q, k, v, impl=c.attention_impl)[:, :, 0, :]
        return x + dense("out")(h).reshape(x.shape)


def check_autoencoder(net: AutoencoderKL) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work at any size of pictures."""
    check_choice("dtype", net.dtype, DTYPES)
    check_choice("conv_impl", net.conv_impl, CONV_IMPLS)
    check_choice("attention_impl", net.attention_impl, ATTENTION_IMPLS)
    check_at_least(net, 1, "blocks", "latent_channels", "out_channels", "norm_groups")
    if not net.widths or min(net.widths) < 1:
        raise ConfigError(f"widths={net.widths} must be one or more integers above 0.")


def sample_noise(key: Array, first: int, shape: tuple[int, ...]) -> Float[Array, "B h w c"]:
    """Standard normal noise of images `first`, `first + 1`, ...: one key for each of them.

    Args:
      key: a random key.
      first: index of the first image, so that chunks of a set have the noise of the whole set.
      shape: `[B, h, w, c]`.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(shape[0]))
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(keys)
