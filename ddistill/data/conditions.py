"""The conditions of examples as a pytree: class ids, or token ids of captions."""

from typing import TypeAlias

from ddistill.conditions import Tokens
from ddistill.typing import HostLabels, Labels

# One leaf or several; every leaf has the examples as its first axis, so that
# `jax.tree.map(lambda x: x[indices], conditions)` takes a batch of either kind.
Conditions: TypeAlias = Labels | HostLabels | Tokens
