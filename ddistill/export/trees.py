"""Parameters by one name each, as tensor files have them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util


def flatten(params: Any) -> dict[str, np.ndarray]:
    """Nested dictionaries as one, with names such as "down_0_0/conv1/kernel"."""
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}


def unflatten(flat: Mapping[str, Any]) -> Any:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")
