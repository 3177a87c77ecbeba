"""Factors of low rank as the LoRA files that diffusers and PEFT load.

A layer `NAME` of the U-Net has the tensors `unet.NAME.lora_A.weight` `[r, C_in, ...]` and
`unet.NAME.lora_B.weight` `[C_out, r, ...]`. Such files have no alpha; readers take the rank for it,
which is the scale 1 of `ddistill.low_rank`. All layers of a file have one rank: older releases of
diffusers take the rank of the first layer for the alpha of every layer.
"""

from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from ddistill.errors import ConfigError
from ddistill.interop import text_unet_weights
from ddistill.low_rank import KERNEL, A, B
from ddistill.networks.text_unet import TextUNet
from ddistill.typing import Params

PREFIX, ENDINGS = "unet.", (".lora_A.weight", ".lora_B.weight")
# The name that `load_lora_weights` looks for in a folder.
FILE = "pytorch_lora_weights.safetensors"


def to_tensors(net: TextUNet, latent_channels: int, factors: Params) -> dict[str, np.ndarray]:
    """The tensors by name of factors for a network's kernels.

    Factors of a lower rank than others are filled up with zeros.

    Args:
      net: the network.
      latent_channels: channels of its input.
      factors: of one student, see `ddistill.low_rank`.

    Raises:
      ConfigError: a factor of a layer that `UNet2DConditionModel` does not have, such as a text
        encoder's.
    """
    leaves = {leaf.path: leaf for leaf, _ in text_unet_weights.leaves(net, latent_channels)}
    flat = traverse_util.flatten_dict(factors)
    rank = max(len(x) for path, x in flat.items() if path[-1] == B)
    found: dict[str, np.ndarray] = {}
    for path in sorted({path[:-1] for path in flat}):
        leaf = leaves.get((*path, KERNEL))
        if leaf is None:
            raise ConfigError(
                f"'{'/'.join(path)}' has factors, and diffusers' U-Net has no such layer. Choose "
                "low_rank.targets within the blocks."
            )
        (name,) = leaf.names
        a, b = (np.asarray(flat[(*path, end)], np.float32) for end in (A, B))
        missing = rank - len(b)
        a = np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, missing)])
        b = np.pad(b, [(0, missing), (0, 0)])
        for ending, tensor in zip(ENDINGS, _as_torch(leaf.kind, a, b)):
            module = name.removesuffix(".weight")
            found[f"{PREFIX}{module}{ending}"] = np.ascontiguousarray(tensor)
    return found


def _as_torch(kind: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two factors in torch's layout, `kind` as in `ddistill.interop.leaves.Leaf`."""
    if kind == "dense":
        return a.T, b.T
    return a.transpose(3, 2, 0, 1), b.T[:, :, None, None]


def rank_of(tensors: Mapping[str, np.ndarray]) -> int:
    """The rank of a file."""
    return next(len(x) for name, x in tensors.items() if name.endswith(ENDINGS[0]))
