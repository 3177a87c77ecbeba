"""transformers' `CLIPTextModel` and our text encoder: settings and tensors under two sets of names.

transformers 5.6 dropped the prefix "text_model." of all tensors. Files of both kinds are read;
files with the prefix are those that every version reads.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.errors import ConfigError, check_choice, nearest
from ddistill.interop.config_values import check_all, is_number, is_whole
from ddistill.interop.leaves import Leaf, Table, params_of, table_of, tensors_of
from ddistill.networks.clip_text import ACTIVATIONS, CLIPText
from ddistill.networks.weights import variable_shapes
from ddistill.typing import JsonRecord, Options, Params

KIND = "CLIPTextModel"
PREFIX = "text_model."
# In files of whole CLIP models, beside the text encoder.
_OTHER_PARTS = ("vision_model.", "visual_projection.")
_OTHER_TENSORS = ("logit_scale", "text_projection.weight")
_POSITIONS = "embeddings.position_ids"

# Options that define the network, with the defaults of `CLIPTextConfig`.
DEFAULTS: Options = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
# Options without effect on the states of a finished encoder.
_IDLE = frozenset(
    (
        *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version"),
        *("projection_dim", "attention_dropout", "dropout", "initializer_range"),
        *("initializer_factor", "bos_token_id", "pad_token_id", "return_dict"),
        *("output_attentions", "output_hidden_states", "tie_word_embeddings"),
    )
)
# `eos_token_id` of configs from before transformers 4.31, where the largest token is meant.
_OLD_EOS = 2


def read_options(config: Options, where: str) -> dict[str, Any]:
    """Options of our text encoder from a config.json.

    Args:
      config: the file's content.
      where: the file's name, for messages.

    Raises:
      ConfigError: another class of model, an unknown key, or an option that our network does not
        have.
    """
    names = config.get("architectures") or [KIND]
    if not isinstance(names, list) or any(name != KIND for name in names):
        raise ConfigError(f"{where}: architectures={names!r}; only {KIND} can be read.")
    if config.get("use_attention_mask"):
        raise ConfigError(f"{where}: use_attention_mask=true is not supported.")
    known = {*DEFAULTS, *_IDLE, "use_attention_mask"}
    for key, value in config.items():
        if key not in known and not key.startswith("_"):
            raise ConfigError(
                f"{where}: {key}={value!r} is not an option of {KIND} that is known here."
                f"{nearest(key, DEFAULTS)}"
            )
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
    check_choice(f"{where}: hidden_act", c["hidden_act"], ACTIVATIONS)
    if c["hidden_size"] % c["num_attention_heads"]:
        raise ConfigError(
            f"{where}: num_attention_heads={c['num_attention_heads']} does not divide "
            f"hidden_size={c['hidden_size']}."
        )
    return {
        "vocabulary": c["vocab_size"],
        "positions": c["max_position_embeddings"],
        "width": c["hidden_size"],
        "layers": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "hidden": c["intermediate_size"],
        "activation": c["hidden_act"],
        "eos": -1 if c["eos_token_id"] == _OLD_EOS else c["eos_token_id"],
        "norm_eps": float(eps),
    }


def write_options(net: CLIPText) -> JsonRecord:
    """config.json of the `CLIPTextModel` that is `net`."""
    return {
        "architectures": [KIND],
        "model_type": "clip_text_model",
        "vocab_size": net.vocabulary,
        "hidden_size": net.width,
        "intermediate_size": net.hidden,
        "projection_dim": net.width,
        "num_hidden_layers": net.layers,
        "num_attention_heads": net.heads,
        "max_position_embeddings": net.positions,
        "hidden_act": net.activation,
        "layer_norm_eps": net.norm_eps,
        "bos_token_id": net.vocabulary - 2,
        "eos_token_id": _OLD_EOS if net.eos < 0 else net.eos,
        "pad_token_id": net.vocabulary - 1,
    }


@functools.lru_cache(maxsize=8)
def leaves(net: CLIPText) -> Table:
    """Every parameter of `net`, with its shape, by names with the prefix; nothing is computed."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return table_of(variable_shapes(net, ids)["params"], _leaf)


_TOP = {
    "tokens": "embeddings.token_embedding",
    "positions_table": "embeddings.position_embedding",
    "norm_out": "final_layer_norm",
}
_LAYER = {
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")},
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def _leaf(path: tuple[str, ...]) -> Leaf:
    """Our parameter at `path` in transformers' terms."""
    if path[0] in _TOP:
        return Leaf(path, (f"{PREFIX}{_TOP[path[0]]}.{ending(path)}",), (), "same")
    return layer_leaf(path, PREFIX)


def layer_leaf(path: tuple[str, ...], prefix: str) -> Leaf:
    """A parameter of a layer of either encoder of CLIP, of which the names begin with `prefix`."""
    first, module, *_ = path
    name = f"{prefix}encoder.layers.{first.removeprefix('layer_')}.{_LAYER[module]}.{ending(path)}"
    return Leaf(path, (name,), (), "dense" if path[-1] == "kernel" else "same")


def ending(path: tuple[str, ...]) -> str:
    """The last part of a tensor's name."""
    return "bias" if path[-1] == "bias" else "weight"


def to_params(net: CLIPText, tensors: Mapping[str, np.ndarray], where: str) -> Params:
    """Our parameters from a `CLIPTextModel`'s tensors, as float32.

    Args:
      net: the network of `read_options`.
      tensors: by transformers' name, with or without the prefix "text_model."; a table of
        positions, which old files hold, and the other parts of a whole CLIP model are left out.
      where: the file's name, for messages.

    Raises:
      ConfigError: see `ddistill.interop.leaves.params_of`.
    """
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(_OTHER_PARTS) and name not in _OTHER_TENSORS
    }
    if not any(name.startswith(PREFIX) for name in own):
        own = {f"{PREFIX}{name}": tensor for name, tensor in own.items()}
    own.pop(f"{PREFIX}{_POSITIONS}", None)
    return params_of(leaves(net), own, where)


def to_tensors(net: CLIPText, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """A `CLIPTextModel`'s tensors by name, with the prefix; inverts `to_params`."""
    return tensors_of(leaves(net), params)
