"""The conditions of examples as a pytree: class ids, or token ids of captions."""

from typing import TypeAlias

import numpy as np
from flax import struct
from jaxtyping import Array, Int

from ddistill.typing import HostLabels, Labels


@struct.dataclass
class Tokens:
    """Captions as token ids; a text encoder turns them into states inside the train step.

    Attributes:
      ids: int32 `[B, L]`, padded as the tokenizer pads.
    """

    ids: Int[Array | np.ndarray, "B L"]


# One leaf or several; every leaf has the examples as its first axis, so that
# `jax.tree.map(lambda x: x[indices], conditions)` takes a batch of either kind.
Conditions: TypeAlias = Labels | HostLabels | Tokens
