"""The residual block of EDM's two networks, and its options.

Source: EDM (arXiv 2206.00364 appendix F), which describes DDPM++, NCSN++ (arXiv 2011.13456) and ADM
(arXiv 2105.05233) as one block with options.
"""

import dataclasses
import math
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.convolution import Conv, ConvOptions, glorot, zeros
from ddistill.networks.layers import Attention, GroupNorm
from ddistill.networks.resampling import filter_down, filter_up


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """Options of all blocks of a network.

    Attributes:
      dropout: rate before every second convolution.
      eps: of the group norms.
      scale_shift: the embedding scales and shifts after the second norm (ADM); else it is added
        before it.
      skip_scale: every sum with a shortcut is multiplied by it.
      project: a block that resamples has a 1x1 convolution on its shortcut even where the number
        of channels stays.
      head_dim: channels per attention head, 0 for a single head.
      taps: filter of the resampling blocks.
      remat, dtype, conv_impl: as in `UNet`.
    """

    dropout: float
    eps: float
    scale_shift: bool
    skip_scale: float
    project: bool
    head_dim: int
    taps: tuple[int, ...]
    remat: bool
    dtype: str
    conv_impl: str

    def norm(self, channels: int, name: str) -> GroupNorm:
        """A group norm: 32 groups, fewer where a group would have less than 4 channels."""
        return GroupNorm(norm_groups(channels), self.eps, self.dtype, name=name)

    def conv(self, features: int, name: str, **options: Unpack[ConvOptions]) -> Conv:
        """A convolution of this network."""
        return Conv(features, dtype=self.dtype, impl=self.conv_impl, name=name, **options)

    def dense(self, features: int, name: str) -> nn.Dense:
        """A linear layer of this network."""
        return nn.Dense(features, dtype=self.dtype, kernel_init=glorot, name=name)

    def heads_of(self, channels: int) -> int:
        """Channels a head has in attention over `channels`; 0 where there are too few for one."""
        if not self.head_dim:
            return channels
        heads = channels // self.head_dim
        return channels // heads if heads else 0

    def block(
        self, features: int, name: str, attend: bool = False, resample: str = ""
    ) -> "EdmBlock":
        """A residual block of this network."""
        cls = nn.remat(EdmBlock, static_argnums=(3,)) if self.remat else EdmBlock
        return cls(features, self, attend, resample, name=name)


def norm_groups(channels: int) -> int:
    """Groups of a group norm over `channels`."""
    return max(1, min(32, channels // 4))


class EdmBlock(nn.Module):
    """Norm, SiLU, conv, embedding, norm, SiLU, dropout, conv, plus the input; then attention.

    Attributes:
      features: output channels.
      options: of the network.
      attend: whether self-attention follows.
      resample: "", "up" or "down": filters before the first convolution and on the shortcut.
    """

    features: int
    options: BlockOptions
    attend: bool = False
    resample: str = ""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], embedding: Float[Array, "B E"], train: bool
    ) -> Float[Array, "B h w D"]:
        """Returns `[B, h, w, features]`, the sides halved or doubled where the block resamples."""
        o, d = self.options, self.features
        h = self._resize(o.norm(x.shape[-1], "norm1")(x, silu=True))
        h = o.conv(d, "conv1")(h)
        projected = o.dense(2 * d if o.scale_shift else d, "time")(embedding)
        if o.scale_shift:
            h = o.norm(d, "norm2")(h, silu=True, scale_shift=jnp.split(projected, 2, axis=-1))
        else:
            h = o.norm(d, "norm2")(h + projected[:, None, None, :], silu=True)
        h = nn.Dropout(o.dropout, deterministic=not train)(h)
        h = o.conv(d, "conv2", kernel_init=zeros)(h)
        widened = x.shape[-1] != d
        x = self._resize(x)
        if widened or (self.resample and o.project):
            x = o.conv(d, "shortcut", size=1)(x)
        h = (x + h) * o.skip_scale
        if self.attend and o.heads_of(d):
            attention = Attention(o.heads_of(d), norm_groups(d), o.eps, o.dtype, name="attention")
            h = attention(h) * o.skip_scale
        return h

    def _resize(self, x: Array) -> Array:
        if not self.resample:
            return x
        resize = filter_up if self.resample == "up" else filter_down
        return resize(x, self.options.taps)


def class_vector(
    cond: Array | None, like: Float[Array, " B"], num_classes: int
) -> Float[Array, "B K"]:
    """One-hot classes; all zero for the null class, id `num_classes`, which None stands for.

    Args:
      cond: class ids, or None.
      like: times, for the batch size.
      num_classes: K, above 0.
    """
    if cond is None:
        return jnp.zeros((like.shape[0], num_classes))
    return jax.nn.one_hot(cond, num_classes)


SQRT_HALF = math.sqrt(0.5)
