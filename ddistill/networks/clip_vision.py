"""CLIP's image encoder (arXiv 2103.00020): a vision transformer with a class token."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.clip_text import ACTIVATIONS, CLIPLayer
from ddistill.networks.convolution import traced_once
from ddistill.networks.transformer import layer_norm
from ddistill.networks.unet import check_at_least

_SPREAD = traced_once(nn.initializers.normal(0.02))


class CLIPVision(nn.Module):
    """Image encoder of CLIP: patches and a class token, and a transformer with norms before layers.

    Defaults are ViT-B/32: 87,456,000 parameters. ViT-g/14 has patch 14, width 1408, 40 layers, 16
    heads, hidden 6144 and activation "gelu".

    Attributes:
      image_size: side of the images in pixels; a multiple of `patch`.
      patch: side of a patch in pixels.
      width: channels.
      layers: number of layers.
      heads: attention heads per layer; has to divide the width.
      hidden: channels between the two linear layers after each attention.
      activation: as of `CLIPText`.
      norm_eps: of every layer norm.
    """

    image_size: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(self, images: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        """Encodes images.

        Args:
          images: normalised as the checkpoint says; of `image_size`.

        Returns:
          The state of the class token after the last norm, float32, before CLIP's projection.

        Raises:
          ConfigError: the fields do not fit together, or the images have another size.
        """
        check_clip_vision(self)
        count, side, p = len(images), self.image_size // self.patch, self.patch
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ConfigError(
                f"Images of shape {images.shape[1:]} were given; image_size={self.image_size}."
            )
        kernel = self.param("patches", _SPREAD, (p, p, 3, self.width))
        split = images.reshape(count, side, p, side, p, 3)
        h = jnp.einsum("bipjqc,pqcd->bijd", split, kernel).reshape(count, side**2, self.width)
        token = self.param("class_token", _SPREAD, (self.width,))
        first = jnp.broadcast_to(token, (count, 1, self.width))
        places = self.param("positions_table", _SPREAD, (side**2 + 1, self.width))
        h = jnp.concatenate([first, h], axis=1) + places
        h = layer_norm(self.norm_eps, "float32", "norm_in")(h)
        for i in range(self.layers):
            h = CLIPLayer(
                self.heads, self.hidden, self.activation, self.norm_eps, False, name=f"layer_{i}"
            )(h)
        found: Array = layer_norm(self.norm_eps, "float32", "norm_out")(h[:, 0])
        return found


def check_clip_vision(net: CLIPVision) -> None:
    """Raises `ConfigError` for field values of `net` that cannot work."""
    check_choice("activation", net.activation, ACTIVATIONS)
    check_at_least(net, 1, "image_size", "patch", "width", "layers", "heads", "hidden")
    for whole, part in (("width", "heads"), ("image_size", "patch")):
        if getattr(net, whole) % getattr(net, part):
            raise ConfigError(
                f"{part}={getattr(net, part)} does not divide {whole}={getattr(net, whole)}."
            )
