"""Stored moments to the latents that networks see, on the device, with a fresh draw every time."""

import jax
import jax.numpy as jnp

from ddistill.data.encodings import MOMENTS, EncoderFacts
from ddistill.networks.autoencoder_kl import draw
from ddistill.typing import Images, Keys


def draw_latents(keys: Keys, stored: jax.Array, encoder: EncoderFacts) -> Images:
    """Latents as networks see them, float32 `[B, h, w, c]`.

    A draw depends on the key and the row of an example alone: with the keys of step s, batch s is a
    function of seed and s.

    Args:
      keys: `[B]`, of this use alone.
      stored: moments `[B, h, w, 2c]`, of which one latent each is drawn, or latents `[B, h, w, c]`.
      encoder: the encoder that made them.
    """
    latents = jnp.asarray(stored, jnp.float32)
    if encoder.kind == MOMENTS:
        shape = (*latents.shape[1:-1], latents.shape[-1] // 2)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        latents = draw(latents, noise)
    return (latents - encoder.shift) * encoder.scaling


def to_decoder(latents: Images, encoder: EncoderFacts) -> Images:
    """Latents as networks see them to the latents that the decoder takes."""
    return latents / encoder.scaling + encoder.shift
