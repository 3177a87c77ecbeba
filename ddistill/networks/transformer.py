"""Transformers over the pixels of a feature map, with cross-attention to a text.

The blocks of latent diffusion (arXiv 2112.10752). Parameters are float32; norms, scores and softmax
are computed in float32, matrix products in `dtype`.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError
from ddistill.networks.attention import attend, heads_of
from ddistill.networks.convolution import Conv, glorot, zeros
from ddistill.networks.layers import GroupNorm

_LAYER_NORM_EPS = 1e-5
_GROUP_NORM_EPS = 1e-6


@dataclass(frozen=True)
class TransformerConfig:
    """Options of all transformers of a network.

    Attributes:
      norm_groups: of the group norm before the first projection.
      linear_projection: whether the projections are linear layers or convolutions of size 1: the
        same function with kernels `[C, C]` or `[1, 1, C, C]`.
      upcast: see `ddistill.networks.attention.attend`.
      remat: recompute each transformer in the backward pass.
      dtype: of matrix products.
      attention_impl: see `ddistill.networks.attention.attend`.
    """

    norm_groups: int
    linear_projection: bool
    upcast: bool
    remat: bool
    dtype: str
    attention_impl: str

    def transformer(self, heads: int, depth: int, name: str) -> nn.Module:
        """The transformer of one place of the network."""
        cls = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        return cls(heads, depth, self, name=name)

    def dense(self, features: int, name: str, bias: bool = True) -> nn.Dense:
        """A linear layer."""
        return nn.Dense(features, bias, dtype=self.dtype, kernel_init=glorot, name=name)

    def norm(self, name: str) -> nn.LayerNorm:
        """A layer norm."""
        return layer_norm(_LAYER_NORM_EPS, self.dtype, name)


def layer_norm(eps: float, dtype: str, name: str) -> nn.LayerNorm:
    """A layer norm with a variance that is not a difference of two large numbers."""
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)


class SpatialTransformer(nn.Module):
    """Group norm, projection, blocks over all pixels, zero projection, plus the input.

    Attributes:
      heads: attention heads; has to divide the channels.
      depth: number of blocks.
      config: options of the network.
    """

    heads: int
    depth: int
    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B H W C"]:
        """Returns features of the shape of `x`; `context` is the text."""
        batch, height, width, channels = x.shape
        if channels % self.heads:
            raise ConfigError(
                f"heads={self.heads} does not divide the {channels} channels of "
                f"'{'/'.join(self.path)}'."
            )
        c = self.config
        h = GroupNorm(c.norm_groups, _GROUP_NORM_EPS, c.dtype, name="norm")(x)
        h = self._project(h, "proj_in", glorot).reshape(batch, height * width, channels)
        for i in range(self.depth):
            h = TransformerBlock(self.heads, c, name=f"block_{i}")(h, context)
        return x + self._project(h.reshape(x.shape), "proj_out", zeros)

    def _project(self, h: Array, name: str, init: nn.initializers.Initializer) -> Array:
        c, channels = self.config, h.shape[-1]
        if c.linear_projection:
            return nn.Dense(channels, dtype=c.dtype, kernel_init=init, name=name)(h)
        return Conv(channels, size=1, dtype=c.dtype, kernel_init=init, name=name)(h)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a gated layer, each after a layer norm and residual.

    Attributes:
      heads: attention heads.
      config: options of the network.
    """

    heads: int
    config: TransformerConfig

    @nn.compact
    def __call__(
        self, h: Float[Array, "B N C"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B N C"]:
        """Returns features of the shape of `h`."""
        c = self.config
        normed = c.norm("norm1")(h)
        h = h + CrossAttention(self.heads, c, name="attn1")(normed, normed)
        h = h + CrossAttention(self.heads, c, name="attn2")(c.norm("norm2")(h), context)
        return h + GatedLayer(c, name="ff")(c.norm("norm3")(h))


class CrossAttention(nn.Module):
    """Attention with queries from one sequence, keys and values without bias from another.

    Attributes:
      heads: attention heads.
      config: options of the network.
    """

    heads: int
    config: TransformerConfig

    @nn.compact
    def __call__(
        self, h: Float[Array, "B N C"], context: Float[Array, "B L D"]
    ) -> Float[Array, "B N C"]:
        """Returns features of the shape of `h`."""
        c, channels = self.config, h.shape[-1]
        q = c.dense(channels, "q", bias=False)(h)
        k, v = (c.dense(channels, name, bias=False)(context) for name in ("k", "v"))
        split = [heads_of(x, self.heads) for x in (q, k, v)]
        h = attend(*split, upcast=c.upcast, impl=c.attention_impl).reshape(h.shape)
        return c.dense(channels, "out")(h)


class GatedLayer(nn.Module):
    """GEGLU (arXiv 2002.05202) of four times the width, then a linear layer.

    Attributes:
      config: options of the network.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, h: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        """Returns features of the shape of `h`."""
        channels = h.shape[-1]
        value, gate = jnp.split(self.config.dense(8 * channels, "in")(h), 2, axis=-1)
        return self.config.dense(channels, "out")(value * nn.gelu(gate, approximate=False))
