"""A tiny CLIP with random weights, in the layouts of transformers and open_clip, without torch."""

import re
from pathlib import Path

import numpy as np
from tiny_sd import WORDS, merges, random_tensors, write_json, write_tokenizer

from ddistill.interop import clip_text, clip_vision
from ddistill.interop.clip import PROJECTIONS
from ddistill.interop.tensors import write_tensors
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.clip_vision import CLIPVision

DIM, SIDE, LENGTH = 6, 12, 16
VISION = {
    **{"hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "image_size": SIDE, "patch_size": 4},
}
TEXT = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": LENGTH, "eos_token_id": 2},
}


def tensors(vocabulary: int) -> dict[str, np.ndarray]:
    """The tensors of transformers' `CLIPModel`."""
    text = CLIPText(vocabulary, LENGTH, width=16, layers=2, heads=4, hidden=24)
    vision = CLIPVision(SIDE, 4, width=8, layers=2, heads=2, hidden=20)
    rng = np.random.default_rng(5)
    made = {**random_tensors(clip_text.leaves(text)), **random_tensors(clip_vision.leaves(vision))}
    for name, width in zip(PROJECTIONS, (8, 16)):
        made[name] = (rng.standard_normal((DIM, width)) / width**0.5).astype(np.float32)
    return {**made, "logit_scale": np.float32(4.6)}


def config(vocabulary: int, activation: str = "quick_gelu") -> dict:
    """config.json of it."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": DIM,
        "text_config": {**TEXT, "vocab_size": vocabulary, "hidden_act": activation},
        # Files of early versions have keys that mean nothing here.
        "vision_config": {**VISION, "hidden_act": activation, "top_k": 50},
    }


def write_clip(folder: Path, activation: str = "quick_gelu") -> Path:
    """The folder of a `CLIPModel` with its tokenizer."""
    vocabulary = len(write_tokenizer(folder, merges(WORDS)))
    write_json(folder / "config.json", config(vocabulary, activation))
    write_json(
        folder / "preprocessor_config.json",
        {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}},
    )
    write_tensors(folder / "model.safetensors", tensors(vocabulary))
    return folder


_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
_PARTS = {
    **{"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"},
    **{"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"},
}


def open_clip_tensors(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of transformers under open_clip's names and layouts."""
    made = {_NAMES[name]: x for name, x in found.items() if name in _NAMES}
    made["visual.proj"], made["text_projection"] = (found[name].T for name in PROJECTIONS)
    for name in found:
        block = re.fullmatch(r"(vision|text)_model\.encoder\.layers\.(\d)\.(.+)\.(\w+)", name)
        if not block:
            continue
        tower = "visual." if block[1] == "vision" else ""
        layer = f"{tower}transformer.resblocks.{block[2]}"
        if block[3] in _PARTS:
            made[f"{layer}.{_PARTS[block[3]]}.{block[4]}"] = found[name]
        elif block[3] == "self_attn.q_proj":
            three = [found[name.replace("q_proj", f"{n}_proj")] for n in "qkv"]
            made[f"{layer}.attn.in_proj_{block[4]}"] = np.concatenate(three)
    return made


def open_clip_config(vocabulary: int) -> dict:
    """open_clip_config.json of it, with the activation "gelu"."""
    return {
        "model_cfg": {
            "embed_dim": DIM,
            "vision_cfg": {
                **{"image_size": SIDE, "layers": 2, "width": 8},
                **{"head_width": 4, "patch_size": 4, "mlp_ratio": 2.5},
            },
            "text_cfg": {
                **{"context_length": LENGTH, "vocab_size": vocabulary, "width": 16},
                **{"heads": 4, "layers": 2, "mlp_ratio": 1.5},
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    }


def write_open_clip(folder: Path) -> Path:
    """The same model in open_clip's layout, with the activation "gelu"."""
    vocabulary = len(write_tokenizer(folder, merges(WORDS)))
    write_json(folder / "open_clip_config.json", open_clip_config(vocabulary))
    made = open_clip_tensors(tensors(vocabulary))
    write_tensors(folder / "open_clip_model.safetensors", made)
    return folder
