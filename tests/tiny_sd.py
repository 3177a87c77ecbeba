"""A tiny Stable Diffusion with random weights, as a folder of diffusers, made without torch."""

import hashlib
import json
import zlib
from pathlib import Path

import jax
import numpy as np

from ddistill.interop import autoencoder_kl, clip_text, text_unet, text_unet_weights
from ddistill.interop.leaves import names_and_shapes
from ddistill.interop.tensors import write_tensors
from ddistill.interop.tokenizer import END, START
from ddistill.networks.autoencoder_kl import AutoencoderKL
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.text_unet import TextUNet

WORDS = (
    *("a", "photo", "of", "the", "cat", "dog", "digit", "zero", "one", "two", "three"),
    *("red", "green", "small", "large", "thin", "thick"),
)
LATENTS = (4, 4, 4)
SCALING = autoencoder_kl.Scaling(0.25)


def random_tensors(table):
    """Tensors of all names, each from a seed of its own; norms are near 1, the rest around 0."""
    made = {}
    for name, shape in names_and_shapes(table).items():
        noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = 0.2 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
        made[name] = (middle + spread * noise).astype(np.float32)
    return made


def listing(shapes):
    """A digest of the names and shapes of tensors."""
    lines = [f"{name} {list(shape)}" for name, shape in sorted(shapes.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def recomputed(function, *given):
    """How many parts of a program are computed again in its backward pass."""
    equations = jax.make_jaxpr(function)(*given).eqns
    return sum(equation.primitive.name in ("checkpoint", "remat2") for equation in equations)


def alphabet():
    """The printable characters that stand for the 256 bytes in CLIP's vocabulary."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in kept]
    return [chr(c) for c in (*kept, *range(256, 256 + len(others)))]


def merges(words):
    """Pairs that build each word from its left to its right."""
    found = {}
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            found[parts[0], parts[1]] = None
            parts = [parts[0] + parts[1], *parts[2:]]
    return list(found)


def write_tokenizer(folder: Path, pairs, pad=END):
    """vocab.json, merges.txt and tokenizer_config.json; returns the vocabulary."""
    folder.mkdir(parents=True)
    letters = alphabet()
    whole = ["".join(pair) for pair in pairs]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *whole, START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return vocabulary


def networks(vocabulary: int):
    """The three networks of the folder."""
    unet = TextUNet(
        widths=(16, 32), blocks=(1,), attends=(0,), heads=(2, 4), context_dim=16, norm_groups=8
    )
    vae = AutoencoderKL(widths=(8, 16), blocks=1, norm_groups=4)
    text = CLIPText(vocabulary, width=16, layers=2, heads=2, hidden=32)
    return unet, vae, text


def one_level(vocabulary: int):
    """A U-Net of one level with a middle, for tests that trace steps of many networks."""
    unet, vae, text = smallest(vocabulary)
    return unet.clone(middle=True), vae, text


def smallest(vocabulary: int):
    """Networks of one level, for tests that train: most of their time is compiling."""
    unet = TextUNet(
        widths=(16,),
        blocks=(1,),
        attends=(0,),
        heads=(2,),
        context_dim=16,
        middle=False,
        norm_groups=8,
    )
    vae = AutoencoderKL(widths=(8, 8), blocks=1, norm_groups=4, mid_attention=False)
    return unet, vae, CLIPText(vocabulary, width=16, layers=1, heads=2, hidden=32)


def write_folder(folder: Path, made=networks) -> Path:
    """The folder of a `StableDiffusionPipeline` of which transformers 4 and 5 read every part.

    Args:
      folder: to be made.
      made: the size of the vocabulary to U-Net, autoencoder and text encoder.
    """
    vocabulary = write_tokenizer(folder / "tokenizer", merges(WORDS))
    unet, vae, text = made(len(vocabulary))
    parts = {
        "unet": (
            text_unet.write_options(unet, LATENTS),
            text_unet_weights.leaves(unet, LATENTS[2]),
            "diffusion_pytorch_model",
        ),
        "vae": (
            autoencoder_kl.write_options(vae, SCALING, 8),
            autoencoder_kl.leaves(vae),
            "diffusion_pytorch_model",
        ),
        "text_encoder": (clip_text.write_options(text), clip_text.leaves(text), "model"),
    }
    for name, (config, table, stem) in parts.items():
        (folder / name).mkdir()
        write_json(folder / name / "config.json", config)
        write_tensors(folder / name / f"{stem}.safetensors", random_tensors(table))
    (folder / "scheduler").mkdir()
    scheduler = {
        "_class_name": "PNDMScheduler",
        **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        **{"num_train_timesteps": 1000, "skip_prk_steps": True, "steps_offset": 1},
    }
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def write_json(path: Path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
