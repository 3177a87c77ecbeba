"""Token ids to the conditions of networks with cross-attention, by CLIP's text encoder."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from ddistill.conditions import TextCondition
from ddistill.errors import check_choice
from ddistill.networks.clip_text import CLIPText, end_positions
from ddistill.typing import AnyArray, Params

POOLS = ("tokens", "all", "end")


@struct.dataclass
class TextEncoder:
    """A text encoder with its parameters. A pytree: `params` are data.

    Attributes:
      params: of the module.
      module: the network "clip_text".
      pool: how the states of a text become `TextCondition.pooled`: "tokens", the mean from the
        first token after the start to the end token; "all", the mean over all positions; "end",
        the state of the end token.
    """

    params: Params
    module: CLIPText = struct.field(pytree_node=False)
    pool: str = struct.field(pytree_node=False, default="tokens")

    def __call__(self, ids: Int[AnyArray, "B L"]) -> TextCondition:
        """The conditions of texts.

        Args:
          ids: token ids.

        Raises:
          ConfigError: another value of `pool`.
        """
        ids = jnp.asarray(ids)
        read: tuple[Array, Array] = self.module.apply(  # type: ignore[assignment]
            {"params": self.params}, ids
        )
        return pooled_condition(*read, ids, self.module.eos, self.pool)


def pooled_condition(
    states: Float[Array, "B L D"],
    at_end: Float[Array, "B D"],
    ids: Int[Array, "B L"],
    eos: int,
    pool: str = "tokens",
) -> TextCondition:
    """What `CLIPText` gives as a condition; `eos` as in `CLIPText`, `pool` as in `TextEncoder`.

    Raises:
      ConfigError: another value of `pool`.
    """
    check_choice("pool", pool, POOLS)
    if pool == "end":
        return TextCondition(states, at_end)
    positions = jnp.arange(ids.shape[1])
    ends = end_positions(ids, eos)[:, None]
    counted = (positions > 0) & (positions <= ends) | (pool == "all")
    weights = counted / jnp.sum(counted, axis=1, keepdims=True)
    return TextCondition(states, jnp.einsum("bld,bl->bd", states, weights))


# For texts outside of a train step.
encode_texts = jax.jit(TextEncoder.__call__)
