"""The block of diffusion transformers: adaptive norms, self-attention, a hidden layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.networks.attention import attend, heads_of
from ddistill.networks.convolution import glorot, zeros

_EPS = 1e-6
# Of the norms of scales and shifts, which have no direction at zero.
_DOUBLE_EPS = 1e-4


@dataclass(frozen=True)
class DiTOptions:
    """Options of all blocks of a network, as in `ddistill.networks.dit.DiT`."""

    width: int
    heads: int
    mlp_ratio: int
    qk_norm: bool
    double_norm: bool
    dropout: float
    mlp_norm_eps: float
    dtype: str
    attention_impl: str

    def dense(self, features: int, name: str) -> nn.Dense:
        """A linear layer."""
        return nn.Dense(features, dtype=self.dtype, kernel_init=glorot, name=name)


class DiTBlock(nn.Module):
    """Adaptive norm, self-attention, gate; adaptive norm, hidden layer, gate (adaLN-zero).

    Both gates are zero before training, so that a fresh block returns its input.

    Attributes:
      options: of the network.
    """

    options: DiTOptions

    @nn.compact
    def __call__(
        self, h: Float[Array, "B N D"], embedding: Float[Array, "B D"], train: bool
    ) -> Float[Array, "B N D"]:
        """Returns tokens of the shape of `h`; `embedding` is that of the time, after SiLU."""
        o = self.options
        names = ("shift", "scale", "gate")
        shift, scale, gate, shift2, scale2, gate2 = modulations(
            o, embedding, "modulation", (*names, *names)
        )
        drop = nn.Dropout(o.dropout, deterministic=not train)
        attended = self._attention(modulate(o, h, shift, scale, _EPS))
        h = h + gate[:, None] * drop(attended)
        hidden = o.dense(o.mlp_ratio * o.width, "mlp_0")(
            modulate(o, h, shift2, scale2, o.mlp_norm_eps)
        )
        hidden = drop(nn.gelu(hidden, approximate=True))
        return h + gate2[:, None] * o.dense(o.width, "mlp_1")(hidden)

    def _attention(self, h: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        o = self.options
        q, k, v = (
            heads_of(x, o.heads) for x in jnp.split(o.dense(3 * o.width, "qkv")(h), 3, axis=-1)
        )
        if o.qk_norm:
            q, k = (
                nn.RMSNorm(epsilon=_EPS, dtype=o.dtype, name=f"norm_{name}")(x)
                for name, x in (("q", q), ("k", k))
            )
        attended = attend(q, k, v, impl=o.attention_impl).reshape(h.shape)
        return o.dense(o.width, "attention_out")(attended)


def modulations(
    options: DiTOptions, embedding: Float[Array, "B D"], name: str, kinds: Sequence[str]
) -> list[Float[Array, "B D"]]:
    """Shifts, scales and gates from the embedding; to be called in a compact method.

    One linear layer gives all of them. It is zero before training, as far as its results are not
    normalised: a normalised shift of zero has no direction.

    Args:
      options: of the network.
      embedding: of time and class, after SiLU.
      name: of the linear layer.
      kinds: of the results in order, "shift", "scale" or "gate".
    """
    width = options.width

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        if not options.double_norm:
            return zeros(key, shape, dtype)
        drawn = glorot(key, (shape[0], width), dtype)
        return jnp.concatenate(
            [jnp.zeros_like(drawn) if kind == "gate" else drawn for kind in kinds], axis=1
        )

    layer = nn.Dense(width * len(kinds), dtype=options.dtype, kernel_init=init, name=name)
    return jnp.split(layer(embedding), len(kinds), axis=-1)


def modulate(
    options: DiTOptions,
    h: Float[Array, "B N D"],
    shift: Float[Array, "B D"],
    scale: Float[Array, "B D"],
    eps: float,
) -> Float[Array, "B N D"]:
    """A layer norm without parameters, then `(1 + scale) y + shift`.

    With `double_norm`, `1 + scale` and `shift` are divided by their root mean square over channels.
    """
    gain = 1.0 + scale
    if options.double_norm:
        gain, shift = (_unit(x) for x in (gain, shift))
    norm = nn.LayerNorm(
        eps,
        dtype=options.dtype,
        use_bias=False,
        use_scale=False,
        use_fast_variance=False,
    )
    return norm(h) * gain[:, None] + shift[:, None]


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """`x` divided by its root mean square over channels, which is computed in float32."""
    precise = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(precise), axis=-1, keepdims=True)
    return (precise * jax.lax.rsqrt(square + _DOUBLE_EPS)).astype(x.dtype)
