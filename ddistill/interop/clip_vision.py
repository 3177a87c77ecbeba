"""transformers' `CLIPVisionTransformer` and our image encoder under two sets of names."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.errors import check_choice
from ddistill.interop.clip_text import ending, layer_leaf
from ddistill.interop.config_values import check_all, check_fixed, is_number, is_whole
from ddistill.interop.leaves import Leaf, Table, params_of, table_of
from ddistill.networks.clip_text import ACTIVATIONS
from ddistill.networks.clip_vision import CLIPVision, check_clip_vision
from ddistill.networks.weights import variable_shapes
from ddistill.typing import Options, Params

PREFIX = "vision_model."
_POSITIONS = f"{PREFIX}embeddings.position_ids"
# Options that define the network, with the defaults of `CLIPVisionConfig`.
DEFAULTS: Options = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


def read_vision(config: Options, where: str) -> CLIPVision:
    """Our image encoder from the `vision_config` of a CLIP model; unknown keys are left out.

    Args:
      config: the options.
      where: the file's name, for messages.

    Raises:
      ConfigError: an option that our network does not have.
    """
    c = {key: config.get(key, default) for key, default in DEFAULTS.items()}
    eps = c["layer_norm_eps"]
    whole = [key for key in DEFAULTS if key not in ("hidden_act", "layer_norm_eps")]
    check_all(
        [
            *((key, c[key], is_whole(c[key]), "an integer above 0") for key in whole),
            ("layer_norm_eps", eps, is_number(eps) and 0 < eps < 1, "a number in (0, 1)"),
        ],
        where,
    )
    check_fixed(c, {"num_channels": (3,)}, where)
    check_choice(f"{where}: hidden_act", c["hidden_act"], ACTIVATIONS)
    net = CLIPVision(
        image_size=c["image_size"],
        patch=c["patch_size"],
        width=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        hidden=c["intermediate_size"],
        activation=c["hidden_act"],
        norm_eps=float(eps),
    )
    check_clip_vision(net)
    return net


@functools.lru_cache(maxsize=8)
def leaves(net: CLIPVision) -> Table:
    """Every parameter of `net` with its shape, by transformers' names; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, net.image_size, net.image_size, 3), jnp.float32)
    return table_of(variable_shapes(net, image)["params"], _leaf)


_TOP = {
    "patches": ("embeddings.patch_embedding.weight", "conv"),
    "class_token": ("embeddings.class_embedding", "same"),
    "positions_table": ("embeddings.position_embedding.weight", "same"),
}
# The first is transformers' own spelling.
_NORMS = {"norm_in": "pre_layrnorm", "norm_out": "post_layernorm"}


def _leaf(path: tuple[str, ...]) -> Leaf:
    """Our parameter at `path` in transformers' terms."""
    first = path[0]
    if first in _TOP:
        name, kind = _TOP[first]
        return Leaf(path, (f"{PREFIX}{name}",), (), kind)
    if first in _NORMS:
        return Leaf(path, (f"{PREFIX}{_NORMS[first]}.{ending(path)}",), (), "same")
    return layer_leaf(path, PREFIX)


def to_params(net: CLIPVision, tensors: Mapping[str, np.ndarray], where: str) -> Params:
    """Our parameters, as float32.

    Args:
      net: the network of `read_vision`.
      tensors: of a CLIP model by transformers' names; those of other parts are left out.
      where: the file's name, for messages.

    Raises:
      ConfigError: see `ddistill.interop.leaves.params_of`.
    """
    own = {k: x for k, x in tensors.items() if k.startswith(PREFIX) and k != _POSITIONS}
    return params_of(leaves(net), own, where)
