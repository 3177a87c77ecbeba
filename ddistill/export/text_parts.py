"""The parts of a pipeline in an export: autoencoder, text encoder and tokenizer.

A run that has learnt them writes its own. Parts of a teacher's pipeline are the teacher's bytes,
with two additions that old and new releases of transformers need.
transformers before 5.6 reads a text encoder without the prefix "text_model." in its names as random
weights, with a warning alone; and `CLIPTokenizer` before 5.0 needs vocab.json and merges.txt beside
tokenizer.json.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax

from ddistill.data.byte_pairs import BytePairTokenizer
from ddistill.errors import ConfigError
from ddistill.export.json_files import write_config
from ddistill.interop import autoencoder_kl, clip_text
from ddistill.interop.clip_text import PREFIX
from ddistill.interop.diffusers_folders import CONFIG, read_json
from ddistill.interop.diffusers_weights import STEM
from ddistill.interop.pipeline_folders import TEXT, TOKENIZER, VAE, FoundPart, find_part
from ddistill.interop.pipeline_parts import Decoder
from ddistill.interop.tensors import write_tensors
from ddistill.interop.tokenizer import END, JSON, MERGES, SETTINGS, START, VOCABULARY
from ddistill.networks.autoencoder_kl import AutoencoderKL
from ddistill.networks.text_encoding import TextEncoder
from ddistill.runtime.files import write_text

# The names under which diffusers and transformers look for weights.
_NAMES = {
    (VAE, ".safetensors"): f"{STEM}.safetensors",
    (VAE, ".bin"): f"{STEM}.bin",
    (TEXT, ".safetensors"): "model.safetensors",
    (TEXT, ".bin"): "pytorch_model.bin",
}


@dataclass(frozen=True, eq=False)
class LearntParts:
    """The parts that a run has trained itself.

    Attributes:
      decoder: the autoencoder.
      text_encoder: token ids to conditions.
      tokenizer: texts to token ids.
      side: height of the pictures.
    """

    decoder: Decoder
    text_encoder: TextEncoder
    tokenizer: BytePairTokenizer
    side: int


def write_learnt_parts(parts: LearntParts, out: Path) -> None:
    """Writes vae/, text_encoder/ and tokenizer/ of what a run has learnt.

    Raises:
      ConfigError: diffusers has no such autoencoder.
    """
    vae, text = parts.decoder, parts.text_encoder
    if not isinstance(vae.module, AutoencoderKL):
        raise ConfigError(f"diffusers has no autoencoder {type(vae.module).__name__}.")
    for name, config, tensors in (
        (
            VAE,
            autoencoder_kl.write_options(vae.module, vae.scaling, parts.side),
            autoencoder_kl.to_tensors(vae.module, jax.device_get(vae.params)),
        ),
        (
            TEXT,
            clip_text.write_options(text.module),
            clip_text.to_tensors(text.module, jax.device_get(text.params)),
        ),
    ):
        write_config(out / name / CONFIG, config)
        write_tensors(out / name / _NAMES[name, ".safetensors"], dict(tensors))
    (out / TOKENIZER).mkdir()
    for name, content in parts.tokenizer.files().items():
        write_text(out / TOKENIZER / name, content)


def write_text_parts(source: Path, out: Path, length: int) -> None:
    """Writes vae/, text_encoder/ and tokenizer/ of a pipeline into the folder `out`.

    Args:
      source: the folder of the pipeline, or the parts that a stage keeps.
      out: the folder of the export.
      length: tokens of a text, for a tokenizer whose files do not say it.

    Raises:
      ConfigError: a part is missing or damaged.
    """
    _copy(find_part(source, VAE), VAE, out / VAE)
    text = find_part(source, TEXT)
    tensors = text.weights.read()
    if any(name.startswith(PREFIX) for name in tensors):
        _copy(text, TEXT, out / TEXT)
    else:
        _copy_config(text, out / TEXT)
        named = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
        write_tensors(out / TEXT / _NAMES[TEXT, ".safetensors"], named)
    _write_tokenizer(source / TOKENIZER, out / TOKENIZER, length)


def _copy_config(part: FoundPart, out: Path) -> None:
    out.mkdir(parents=True)
    shutil.copyfile(part.config_path, out / CONFIG)


def _copy(part: FoundPart, name: str, out: Path) -> None:
    """Copies a network; a file such as model.fp16.safetensors gets the usual name."""
    _copy_config(part, out)
    if part.weights.index is None:
        (file,) = part.weights.files
        shutil.copyfile(file, out / _NAMES[name, file.suffix])
        return
    for file in part.weights.files:
        shutil.copyfile(file, out / file.name)
    kind = part.weights.files[0].suffix
    shutil.copyfile(part.weights.named, out / f"{_NAMES[name, kind]}.index.json")


def _write_tokenizer(source: Path, out: Path, length: int) -> None:
    """Copies a tokenizer and adds the files that it lacks."""
    out.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, out / path.name)
    if not (out / VOCABULARY).is_file() or not (out / MERGES).is_file():
        _write_vocabulary(source / JSON, out)
    if not (out / SETTINGS).is_file():
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
        write_config(out / SETTINGS, settings)


def _write_vocabulary(path: Path, out: Path) -> None:
    """vocab.json and merges.txt with the content of tokenizer.json."""
    content = read_json(path)
    try:
        model = content["model"]
        added = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
        vocabulary = {**model["vocab"], **added}
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{path} is no tokenizer of CLIP, which is a BPE.") from None
    write_text(out / VOCABULARY, json.dumps(vocabulary, ensure_ascii=False) + "\n")
    write_text(out / MERGES, "\n".join(["#version: 0.2", *pairs]) + "\n")
