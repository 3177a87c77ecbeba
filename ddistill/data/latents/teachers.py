"""Pipelines of teachers: autoencoder, tokenizer and text encoder of a folder of diffusers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddistill.data.encodings import MOMENTS, EncoderFacts, TokenizerFacts
from ddistill.data.latents.pipeline import (
    Encode,
    LatentPipeline,
    TextEncoder,
    TextStates,
    words_tokenizer,
)
from ddistill.errors import ConfigError
from ddistill.interop.dit_pipeline import read_dit_pipeline
from ddistill.interop.latent_models import LatentModel
from ddistill.interop.pipeline_folders import VAE, is_class_pipeline
from ddistill.interop.pipeline_parts import files_of_part
from ddistill.interop.stable_diffusion import StableDiffusion, read_stable_diffusion
from ddistill.interop.tensors import file_digest
from ddistill.runtime.files import expand


def encoder_facts(model: LatentModel) -> EncoderFacts:
    """What a set of latents records of the autoencoder of a pipeline."""
    vae = model.vae.build()
    return EncoderFacts(
        name="autoencoder_kl",
        digest=model.vae.digest,
        kind=MOMENTS,
        channels=model.latent_shape[2],
        factor=vae.factor,
        scaling=model.scaling.factor,
        shift=model.scaling.shift,
        image_channels=vae.out_channels,
    )


def tokenizer_facts(model: StableDiffusion) -> TokenizerFacts:
    """What a set of captions records of the tokenizer of a pipeline."""
    tokenizer = model.tokenizer
    return TokenizerFacts(
        name="CLIP",
        digest=file_digest(*tokenizer.files),
        length=tokenizer.length,
        vocabulary=tokenizer.vocabulary,
        null=tuple(int(i) for i in model.tokens([""])[0]),
    )


def open_diffusers(path: str, captions: Sequence[str]) -> LatentPipeline:
    """The parts of a pipeline of diffusers that a set of latents depends on.

    Of a `StableDiffusionPipeline`: autoencoder, tokenizer and text encoder. A `DiTPipeline` has an
    autoencoder alone; captions get a tokenizer of their own words, and its networks read the
    classes of the set.

    Args:
      path: the folder.
      captions: of the training images.

    Raises:
      ConfigError: no folder is named, or as `read_stable_diffusion` and `read_dit_pipeline`.
    """
    if not path:
        raise ConfigError("pipeline='diffusers' needs the folder of a pipeline: diffusers:FOLDER.")
    if is_class_pipeline(expand(path)):
        return _of_classes(expand(path), captions)
    model = read_stable_diffusion(expand(path)).on_device()

    def states(ids: np.ndarray) -> TextStates:
        found = model.encode_text(ids, chunk=len(ids))
        return TextStates(found.states, found.pooled)

    return LatentPipeline(
        encoder=encoder_facts(model),
        tokenizer=tokenizer_facts(model),
        encode=_encoding(model),
        tokenize=model.tokens,
        text_encoder=TextEncoder(model.text_encoder.digest, states),
        licence=model.licence,
        files=files_of_part(expand(path), VAE),
    )


def _of_classes(folder: Path, captions: Sequence[str]) -> LatentPipeline:
    model, tokenizer = read_dit_pipeline(folder).on_device(), words_tokenizer(captions)
    return LatentPipeline(
        encoder=encoder_facts(model),
        tokenizer=tokenizer.facts,
        encode=_encoding(model),
        tokenize=tokenizer,
        licence=model.licence,
        files={**tokenizer.files(), **files_of_part(folder, VAE)},
    )


def _encoding(model: LatentModel) -> Encode:
    """uint8 images `[B, H, W, C]` to moments."""

    def encode(images: np.ndarray) -> np.ndarray:
        return np.asarray(model.moments(images.astype(np.float32) / 127.5 - 1, len(images)))

    return encode
