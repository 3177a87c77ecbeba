"""A U-Net that learns its text encoder: token ids in, prediction out."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.conditions import Condition, TextCondition, Tokens
from ddistill.errors import ConfigError
from ddistill.networks.clip_text import CLIPText, check_clip_text
from ddistill.networks.text_encoding import pooled_condition
from ddistill.networks.text_unet import TextUNet, check_text_unet

# The name of the text encoder's parameters.
TEXT = "text_encoder"


class CaptionedUNet(TextUNet):
    """`TextUNet` with a text encoder of CLIP's kind, of `context_dim` channels.

    The text encoder reads `Tokens`, and learns with the U-Net. Given a `TextCondition`, the network
    is the U-Net alone, so that conditions can be encoded once for many calls. All other parameters
    have the names of `TextUNet`.

    Attributes:
      vocabulary: number of tokens.
      positions: longest text in tokens.
      text_layers, text_heads: of the text encoder.
    """

    vocabulary: int = 4096
    positions: int = 77
    text_layers: int = 2
    text_heads: int = 4

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        time: Float[Array, " B"],
        cond: Tokens | TextCondition | None = None,
        *,
        train: bool = False,
        taps: tuple[str, ...] = (),
        extra: Float[Array, "B X"] | None = None,
    ):
        """Runs the network; arguments, results and errors as of `TextUNet`, or `cond` is `Tokens`.

        Raises:
          ConfigError: also a text that is longer than `positions`.
        """
        if isinstance(cond, Tokens):
            ids = jnp.asarray(cond.ids)
            encoder = CLIPText(**self._text_fields(), name=TEXT)
            cond = pooled_condition(*encoder(ids), ids, encoder.eos)
        return super().__call__(x, time, cond, train=train, taps=taps, extra=extra)

    def text_encoder(self) -> CLIPText:
        """The text encoder, to be applied to the parameters `TEXT` of this network."""
        return CLIPText(**self._text_fields(), parent=None)

    def _text_fields(self) -> dict[str, Any]:
        return {
            "vocabulary": self.vocabulary,
            "positions": self.positions,
            "width": self.context_dim,
            "layers": self.text_layers,
            "heads": self.text_heads,
            "hidden": 4 * self.context_dim,
            "remat": self.remat,
            "dtype": self.dtype,
        }

    def example_condition(self) -> Condition:
        """The token ids of one text of one token."""
        return Tokens(jnp.zeros((1, 1), jnp.int32))


def check_captioned_unet(net: CaptionedUNet) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work."""
    check_text_unet(net)
    if net.added_dim:
        raise ConfigError(f"added_dim={net.added_dim} is an input of text_unet alone; set 0.")
    check_clip_text(net.text_encoder())
