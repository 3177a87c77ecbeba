"""Names for the types that the whole library uses.

Shapes are those of `jaxtyping`: B examples, H rows, W columns, C channels. A name stands for an
array on a device; `Host...` names stand for numpy arrays.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

Images: TypeAlias = Float[Array, "B H W C"]
Labels: TypeAlias = Int[Array, " B"]
PerExample: TypeAlias = Float[Array, " B"]
# `[]` or `[B]`: alphas, sigmas and weights of levels.
Coefficients: TypeAlias = Float[Array, "*B"]
Scalar: TypeAlias = Float[Array, ""]
Index: TypeAlias = Int[Array, ""]

RandomKey: TypeAlias = Key[Array, ""]
Keys: TypeAlias = Key[Array, " B"]

HostImages: TypeAlias = Float[np.ndarray, "B H W C"]
HostLabels: TypeAlias = Int[np.ndarray, " B"]
AnyArray: TypeAlias = Array | np.ndarray

# A network's parameters: a pytree of arrays. The type checker knows nothing of the structure.
Params: TypeAlias = PyTree
# Mutable collections of a network, such as the running statistics of batch norms.
Variables: TypeAlias = Mapping[str, PyTree]
# Hidden activations `[B, h, w, D]` by the name of their tap.
Features: TypeAlias = Mapping[str, Array]
# Scalars, or one value per example or student, by name.
Metrics: TypeAlias = Mapping[str, Array]

# A pytree that a function returns with the same structure.
Tree = TypeVar("Tree", bound=PyTree)

# What `json.dumps` takes. An object that was read is `Mapping[str, object]` until it is checked.
JsonValue: TypeAlias = (
    "bool | int | float | str | list[JsonValue] | tuple[JsonValue, ...] | JsonObject | None"
)
JsonObject: TypeAlias = Mapping[str, JsonValue]
# An object that was read from JSON and has passed its schema, which fixes the types of its values.
JsonRecord: TypeAlias = dict[str, Any]
# Settings by name, whose types only their owner knows: a method, a network or a data source.
Options: TypeAlias = Mapping[str, Any]
