"""Random keys of named streams."""

import zlib

import jax
from jaxtyping import Array, Key


def stream_key(seed: int, stream: str) -> Key[Array, ""]:
    """The key of a named random stream; the key of step s is `fold_in(stream_key(...), s)`."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()) & 0x7FFFFFFF)
