"""open_clip's files of a CLIP model in transformers' terms: options and tensors.

A folder of open_clip has open_clip_config.json and the state dict open_clip_model.safetensors or
open_clip_pytorch_model.bin. Models with towers of other libraries (timm, Hugging Face) are refused.
"""

import re
from collections.abc import Mapping

import numpy as np

from ddistill.errors import ConfigError, nearest
from ddistill.interop.config_values import check_all, is_number, is_whole
from ddistill.typing import JsonRecord, Options

CONFIG = "open_clip_config.json"
STEMS = ("open_clip_model", "open_clip_pytorch_model")
_VISION = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size")
_TEXT = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
# Without effect on a finished model.
_IDLE = ("patch_dropout", "tokenizer_kwargs")
_USUAL: dict[str, Options] = {
    "vision_cfg": {
        **{"layers": 12, "width": 768, "head_width": 64},
        **{"mlp_ratio": 4.0, "patch_size": 16, "image_size": 224},
    },
    "text_cfg": {
        **{"context_length": 77, "vocab_size": 49408, "width": 512},
        **{"heads": 8, "layers": 12, "mlp_ratio": 4.0},
    },
}


def as_config(content: JsonRecord, where: str) -> JsonRecord:
    """config.json of the `CLIPModel` that open_clip_config.json describes.

    Args:
      content: the file's object.
      where: its name, for messages.

    Raises:
      ConfigError: an option that transformers' CLIP does not have, or no size.
    """
    model = content.get("model_cfg")
    if not isinstance(model, dict):
        raise ConfigError(f"{where}: model_cfg is missing; open_clip writes it.")
    known = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    _check_known(model, known, f"{where}: model_cfg")
    vision, text = (_completed(model, name, where) for name in _USUAL)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return {
        "model_type": "clip",
        "projection_dim": model.get("embed_dim"),
        "vision_config": {
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": activation,
        },
        "text_config": {
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "hidden_act": activation,
            # The end token is the largest one, which config.json says in this way.
            "eos_token_id": 2,
        },
    }


def as_preprocessor(content: JsonRecord, size: object) -> JsonRecord:
    """preprocessor_config.json of the images that open_clip_config.json describes.

    Args:
      content: the file's object.
      size: the side of the images.
    """
    found = content.get("preprocess_cfg")
    found = found if isinstance(found, dict) else {}
    made: JsonRecord = {"size": found.get("size", size), "crop_size": size}
    if found.get("interpolation", "bicubic") != "bicubic":
        made["resample"] = found["interpolation"]
    if found.get("resize_mode", "shortest") != "shortest":
        made["resample"] = found["resize_mode"]
    names = {"image_mean": "mean", "image_std": "std"}
    return {**made, **{ours: found[key] for ours, key in names.items() if key in found}}


def _completed(model: JsonRecord, name: str, where: str) -> Options:
    given = model.get(name)
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: model_cfg.{name} is missing; open_clip writes it.")
    usual = _USUAL[name]
    _check_known(given, (*usual, *_IDLE), f"{where}: model_cfg.{name}")
    c = {**usual, **{key: value for key, value in given.items() if key in usual}}
    ratio = c["mlp_ratio"]
    check_all(
        [
            *((k, c[k], is_whole(c[k]), "an integer above 0") for k in usual if k != "mlp_ratio"),
            ("mlp_ratio", ratio, is_number(ratio) and ratio > 0, "a number above 0"),
        ],
        f"{where}: model_cfg.{name}",
    )
    return c


def _check_known(given: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key, value in given.items():
        if key not in known and value not in (None, False):
            raise ConfigError(
                f"{where}.{key}={value!r} is not supported.{nearest(key, known)} Allowed: "
                f"{', '.join(known)}: CLIP's own towers."
            )


_TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}
# Projections of open_clip are [D, P], those of transformers [P, D].
_TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_IGNORED = ("logit_scale", "logit_bias", "attn_mask")
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def as_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a `CLIPModel` from those of open_clip; unknown names stay as they are."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        module, _, ending = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        if block:
            found |= _of_block(block, tensor)
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.T
        elif name in _TOP:
            found[_TOP[name]] = tensor
        elif module in _TOP:
            found[f"{_TOP[module]}.{ending}"] = tensor
        elif name not in _IGNORED:
            found[name] = tensor
    return found


def _of_block(block: re.Match[str], tensor: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of one in a layer; queries, keys and values lie in one tensor of open_clip."""
    tower = "vision_model" if block[1] else "text_model"
    layer, rest = f"{tower}.encoder.layers.{block[2]}", block[3]
    for ending in ("weight", "bias"):
        if rest == f"attn.in_proj_{ending}":
            parts = zip("qkv", np.split(tensor, 3)) if len(tensor) % 3 == 0 else ()
            return {f"{layer}.self_attn.{n}_proj.{ending}": part for n, part in parts}
    module, _, ending = rest.rpartition(".")
    return {f"{layer}.{_IN_BLOCK.get(module, module)}.{ending}": tensor}
