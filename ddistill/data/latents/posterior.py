"""Stored moments to the latents that networks see, on the device, with a fresh draw every time."""

import jax
import jax.numpy as jnp

from ddistill.data.encodings import MOMENTS, EncoderFacts
from ddistill.typing import Images, Keys

# The range that autoencoders of latent diffusion models clip logarithms of variances to.
LOG_VARIANCES = (-30.0, 20.0)


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
        mean, log_variance = jnp.split(latents, 2, axis=-1)
        deviation = jnp.exp(0.5 * jnp.clip(log_variance, *LOG_VARIANCES))
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        latents = mean + deviation * noise
    return (latents - encoder.shift) * encoder.scaling


def to_decoder(latents: Images, encoder: EncoderFacts) -> Images:
    """Latents as networks see them to the latents that the decoder takes."""
    return latents / encoder.scaling + encoder.shift
