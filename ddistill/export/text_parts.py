"""The parts of a pipeline in an export: autoencoder, text encoder and tokenizer.

A run that has learnt them writes its own. Parts of a teacher's pipeline are the teacher's bytes,
with two additions that old and new releases of transformers need.
transformers before 5.6 reads a text encoder without the prefix "text_model." in its names as random
weights, with a warning alone; and `CLIPTokenizer` before 5.0 needs vocab.json and merges.txt beside
tokenizer.json.
"""

import json
from pathlib import Path

import jax

from ddistill.errors import ConfigError
from ddistill.export.autoencoder import write_learnt_autoencoder
from ddistill.export.diffusers_files import copy_network, write_config
from ddistill.export.facts import LearntParts
from ddistill.interop import clip_text
from ddistill.interop.clip_text import PREFIX
from ddistill.interop.diffusers_folders import CONFIG, read_json
from ddistill.interop.pipeline_folders import TEXT, TOKENIZER, VAE, find_part
from ddistill.interop.tensors import write_tensors
from ddistill.interop.tokenizer import END, JSON, MERGES, SETTINGS, START, VOCABULARY
from ddistill.runtime.files import write_files, write_text

# By ending, the names under which transformers looks for weights.
_NAMES = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}


def write_learnt_parts(parts: LearntParts, out: Path) -> None:
    """Writes vae/, text_encoder/ and tokenizer/ of what a run has learnt.

    Raises:
      ConfigError: diffusers does not have the network of the autoencoder.
    """
    write_learnt_autoencoder(parts.decoder, parts.side, out / VAE)
    text = parts.text_encoder
    tensors = dict(clip_text.to_tensors(text.module, jax.device_get(text.params)))
    write_config(out / TEXT / CONFIG, clip_text.write_options(text.module))
    write_tensors(out / TEXT / _NAMES[".safetensors"], tensors)
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
    copy_network(find_part(source, VAE), out / VAE)
    text = find_part(source, TEXT)
    tensors = text.weights.read()
    if any(name.startswith(PREFIX) for name in tensors):
        copy_network(text, out / TEXT, _NAMES)
    else:
        write_files(out / TEXT, {CONFIG: text.config_path})
        named = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
        write_tensors(out / TEXT / _NAMES[".safetensors"], named)
    _write_tokenizer(source / TOKENIZER, out / TOKENIZER, length)


def _write_tokenizer(source: Path, out: Path, length: int) -> None:
    """Copies a tokenizer and adds the files that it lacks."""
    write_files(out, {path.name: path for path in sorted(source.iterdir()) if path.is_file()})
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
