"""Parameters by name, as in tensor files."""

from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from ddistill.typing import Params


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Flattens nested dictionaries; names are paths such as "down_0_0/conv1/kernel"."""
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}


def unflatten(flat: Mapping[str, Params]) -> Params:
    """Inverts `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")
