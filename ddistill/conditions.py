"""Conditions of networks that are more than a class id.

A condition is a pytree. Every leaf has a leading axis of examples, so that batches of conditions
are sliced, repeated and concatenated by `jax.tree.map`, like arrays of class ids.
"""

from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class TextCondition:
    """A text as an encoder has read it, for a network with cross-attention.

    Attributes:
      states: `[B, L, D]`, one vector per token, padding included.
      pooled: `[B, d]`, one vector per text, by which texts are compared and partitioned; networks
        do not read it.
      guidance: `[B]`, the guidance scale w >= 1 that the network's answer should already have
        (LCM, arXiv 2310.04378); None for a network without this input.
      added: `[B, A]`, a vector that is embedded and added to the embedding of the time (SDXL, arXiv
        2307.01952: pooled text and sizes of the picture); None for a network without it.
    """

    states: Float[Array, "B L D"]
    pooled: Float[Array, "B d"]
    guidance: Float[Array, " B"] | None = None
    added: Float[Array, "B A"] | None = None
