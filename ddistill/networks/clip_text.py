"""CLIP's text encoder (arXiv 2103.00020), which text-to-image models take their texts from."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.attention import attend, heads_of
from ddistill.networks.convolution import glorot, traced_once
from ddistill.networks.transformer import layer_norm
from ddistill.networks.unet import DTYPES, check_at_least

ACTIVATIONS = ("quick_gelu", "gelu")
_SPREAD = traced_once(nn.initializers.normal(0.02))


class CLIPText(nn.Module):
    """Text encoder of CLIP: a causal transformer with norms before its layers.

    Defaults are the text encoder of Stable Diffusion 1.5 (CLIP ViT-L/14): 123,060,480 parameters.
    2.x has width 1024, 23 layers, 16 heads, hidden 4096 and activation "gelu".

    Attributes:
      vocabulary: number of tokens.
      positions: longest text in tokens.
      width: channels.
      layers: number of layers.
      heads: attention heads per layer; has to divide the width.
      hidden: channels between the two linear layers after each attention.
      activation: "quick_gelu", x sigmoid(1.702 x), or "gelu", with the error function.
      eos: token at which the pooled output is taken; -1 for the largest token of each text, which
        in CLIP's vocabulary is the end token. Of several such positions the first counts.
      norm_eps: of every layer norm.
      remat: recompute each layer in the backward pass.
      dtype: of matrix products: "float32" or "bfloat16".
    """

    vocabulary: int = 49408
    positions: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "quick_gelu"
    eos: int = -1
    norm_eps: float = 1e-5
    remat: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B D"]]:
        """Encodes texts.

        Args:
          tokens: ids; padding is read like every token, and changes no position before it.

        Returns:
          The states after the last norm, one for each token, and the state of each text's end
          token; float32.

        Raises:
          ConfigError: the fields do not fit together, or the texts are too long.
        """
        check_clip_text(self)
        length = tokens.shape[-1]
        if length > self.positions:
            raise ConfigError(f"Texts of {length} tokens were given; positions={self.positions}.")
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=_SPREAD, name="tokens")
        places = self.param("positions_table", _SPREAD, (self.positions, self.width))
        h = (embed(tokens) + places[:length]).astype(self.dtype)
        cls = nn.remat(CLIPLayer) if self.remat else CLIPLayer
        for i in range(self.layers):
            h = cls(self.heads, self.hidden, self.activation, self.norm_eps, name=f"layer_{i}")(h)
        states = layer_norm(self.norm_eps, "float32", "norm_out")(h)
        return states, states[jnp.arange(tokens.shape[0]), end_positions(tokens, self.eos)]


def end_positions(tokens: Int[Array, "B L"], eos: int) -> Int[Array, " B"]:
    """The first position of the end token of each text; `eos` as in `CLIPText`."""
    return jnp.argmax(tokens if eos < 0 else tokens == eos, axis=-1)


class CLIPLayer(nn.Module):
    """Self-attention and two linear layers, each after a layer norm and residual.

    Attributes:
      heads, hidden, activation, norm_eps: as of `CLIPText`.
      causal: whether a position sees the positions before it alone, as in texts.
    """

    heads: int
    hidden: int
    activation: str
    norm_eps: float
    causal: bool = True

    @nn.compact
    def __call__(self, h: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns states of the shape of `h`."""
        width, dtype = h.shape[-1], h.dtype.name

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=dtype, kernel_init=glorot, name=name)

        normed = layer_norm(self.norm_eps, dtype, "norm1")(h)
        q, k, v = (heads_of(dense(width, name)(normed), self.heads) for name in ("q", "k", "v"))
        seen = attend(q, k, v, causal=self.causal, impl="chunked").reshape(h.shape)
        h = h + dense(width, "out")(seen)
        normed = dense(self.hidden, "fc1")(layer_norm(self.norm_eps, dtype, "norm2")(h))
        return h + dense(width, "fc2")(_activate(normed, self.activation))


def _activate(x: Array, kind: str) -> Array:
    return x * nn.sigmoid(1.702 * x) if kind == "quick_gelu" else nn.gelu(x, approximate=False)


def check_clip_text(net: CLIPText) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work."""
    check_choice("dtype", net.dtype, DTYPES)
    check_choice("activation", net.activation, ACTIVATIONS)
    check_at_least(net, 1, "vocabulary", "positions", "width", "layers", "heads", "hidden")
    check_at_least(net, -1, "eos")
    if net.width % net.heads:
        raise ConfigError(f"heads={net.heads} does not divide width={net.width}.")
