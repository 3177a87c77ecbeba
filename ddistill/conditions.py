"""Conditions of networks: class ids, texts as token ids, texts as an encoder has read them.

A condition is a pytree. Every leaf has a leading axis of examples, so that batches of conditions
are sliced, repeated and concatenated by `jax.tree.map`, like arrays of class ids.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from ddistill.typing import Labels


@struct.dataclass
class Tokens:
    """Captions as token ids; a text encoder turns them into states inside the train step.

    Attributes:
      ids: int32 `[B, L]`, padded as the tokenizer pads.
    """

    ids: Int[Array | np.ndarray, "B L"]


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


# What a conditional network is given. `Tokens` are for networks with a text encoder of their own.
Condition: TypeAlias = Labels | Tokens | TextCondition
# The condition that stands for none: a class id, or a condition of 1 or B examples.
Null: TypeAlias = Condition | np.int32 | int


def null_like(cond: Condition, null: Null) -> Condition:
    """The null condition for every example of `cond`, with its shapes and dtypes."""
    filled: Condition = jax.tree.map(
        lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), cond, null
    )
    return filled


def replace_where(picked: Bool[Array, " B"], cond: Condition, null: Null) -> Condition:
    """The conditions of examples, the picked ones replaced by the null condition."""

    def replaced(c: Array, n: Array) -> Array:
        return jnp.where(picked.reshape(-1, *(1,) * (c.ndim - 1)), n, c)

    found: Condition = jax.tree.map(replaced, cond, null_like(cond, null))
    return found
