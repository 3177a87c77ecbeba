"""Random keys of named streams."""

import zlib

import jax
import numpy as np
from jaxtyping import Array

from ddistill.typing import Keys, RandomKey


def stream_key(seed: int, stream: str) -> RandomKey:
    """The key of a named random stream; the key of step s is `fold_in(stream_key(...), s)`."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()) & 0x7FFFFFFF)


def named_keys(keys: Keys, name: str) -> Keys:
    """One key per example for a named use, such as "noise" or "dropout".

    The result depends on an example's key and the name alone, neither on the other examples nor on
    the order in which names are used. Give `jax.random.split` or `fold_in` the results, never
    `keys` itself.

    Args:
      keys: `[B]`, one key per example.
      name: the use; its CRC-32 is folded into every key.
    """
    return _folded(keys, np.uint32(zlib.crc32(name.encode())))


@jax.jit
def _folded(keys: Keys, stream: np.uint32 | Array) -> Keys:
    return jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys)
