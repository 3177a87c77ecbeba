"""What happens to images on the device: to [-1, 1], and mirrored at random."""

import jax
import jax.numpy as jnp


def to_unit(images: jax.Array) -> jax.Array:
    """Images as float32 in [-1, 1]: uint8 0..255 as x / 127.5 - 1; floats pass.

    Raises:
      TypeError: integers other than uint8, because their range is unknown.
    """
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"Images are {images.dtype}; uint8 in 0..255 or floats in [-1, 1] needed.")
    return images.astype(jnp.float32)


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability one half, decided by its own key.

    Args:
      keys: [B] random keys.
      images: [B, H, W, C].
    """
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
