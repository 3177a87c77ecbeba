"""Conditions of networks: class ids, texts as token ids, texts as an encoder has read them.

A condition is a pytree. Every leaf has a leading axis of examples, so that batches of conditions
are sliced, repeated and concatenated by `jax.tree.map`, like arrays of class ids.
"""

import dataclasses
from collections.abc import Mapping
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


# Name, shape and dtype of an array of a condition, for one example.
Leaf: TypeAlias = tuple[str, tuple[int, ...], str]
CLASS_LEAVES: tuple[Leaf, ...] = (("class", (), "int32"),)


def token_leaves(length: int) -> tuple[Leaf, ...]:
    """The arrays of `Tokens` of so many positions."""
    return (("ids", (length,), "int32"),)


def text_leaves(length: int, width: int) -> tuple[Leaf, ...]:
    """The arrays of `TextCondition` as a text encoder makes it."""
    return (("states", (length, width), "float32"), ("pooled", (width,), "float32"))


def named_leaves(cond: Condition | None) -> dict[str, Array]:
    """The arrays of a condition by name, those of `Leaf`."""
    if cond is None:
        return {}
    if isinstance(cond, Tokens | TextCondition):
        values = {f.name: getattr(cond, f.name) for f in dataclasses.fields(cond)}
        return {name: value for name, value in values.items() if value is not None}
    return {"class": jnp.asarray(cond)}


def with_leaves(cond: Condition | None, leaves: Mapping[str, Array]) -> Condition | None:
    """A condition like `cond` of other arrays, which have the names of `named_leaves`."""
    values = [leaves[name] for name in named_leaves(cond)]
    made: Condition | None = jax.tree.unflatten(jax.tree.structure(cond), values)
    return made


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
