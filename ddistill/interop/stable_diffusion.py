"""Stable Diffusion from a folder of diffusers: U-Net, autoencoder, text encoder, tokenizer, levels.

The folder is that of a `StableDiffusionPipeline` (`pipeline_folders`). The networks are those of
ddistill; reading is strict, and needs neither torch nor diffusers nor transformers.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Array, Int

from ddistill.conditions import TextCondition
from ddistill.errors import ConfigError, check_choice
from ddistill.interop import autoencoder_kl, clip_text, text_unet, text_unet_weights
from ddistill.interop.ddim import read_schedule
from ddistill.interop.imported import Imported
from ddistill.interop.latent_models import LatentModel, Part, in_chunks, read_part
from ddistill.interop.licences import licence_of
from ddistill.interop.pipeline_folders import (
    TEXT,
    TOKENIZER,
    UNET,
    VAE,
    find_pipeline,
)
from ddistill.interop.tensors import file_digest
from ddistill.interop.tokenizer import ClipTokenizer, read_tokenizer
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.text_encoding import POOLS, TextEncoder, encode_texts
from ddistill.runtime.files import expand
from ddistill.typing import AnyArray, Options, Params


@dataclass(frozen=True, kw_only=True)
class StableDiffusion(LatentModel):
    """A text-to-image model on latents.

    Attributes beside those of `LatentModel`:
      unet, text_encoder: the networks "text_unet" and "clip_text".
      tokenizer: texts to token ids.
    """

    unet: Part
    text_encoder: Part
    tokenizer: ClipTokenizer

    def on_device(self) -> Self:
        """The same with the weights of autoencoder and text encoder on jax's default device."""
        return dataclasses.replace(super().on_device(), text_encoder=self.text_encoder.on_device())

    def imported(self, folder: Path) -> Imported:
        """The U-Net as a stage starts from it; `folder` is the pipeline's."""
        parts = {
            VAE: self.vae.digest,
            TEXT: self.text_encoder.digest,
            TOKENIZER: file_digest(*self.tokenizer.files),
        }
        return self.imported_as(self.unet, 0, parts, folder)

    def tokens(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The token ids of texts, int32."""
        return self.tokenizer(texts)

    def encode_text(
        self, tokens: Int[AnyArray, "B L"], pool: str = "tokens", chunk: int = 64
    ) -> TextCondition:
        """The conditions of texts; that of the text "" stands for no text.

        Args:
          tokens: ids, see `tokens`.
          pool: how the states of a text become `TextCondition.pooled`, see
            `ddistill.networks.text_encoding.TextEncoder`.
          chunk: number of texts that are encoded at the same time.

        Raises:
          ConfigError: another value of `pool`.
        """
        check_choice("pool", pool, POOLS)
        module = CLIPText(**{k: v for k, v in self.text_encoder.network.items() if k != "name"})

        def run(params: Params, ids: Array) -> TextCondition:
            return encode_texts(TextEncoder(params, module, pool), ids)

        return in_chunks(run, self.text_encoder.params, np.asarray(tokens, np.int32), chunk)


def read_stable_diffusion(folder: Path, named: str = "") -> StableDiffusion:
    """The model in the folder of a `StableDiffusionPipeline`.

    Args:
      folder: with model_index.json.
      named: its name in `StableDiffusion.source`; "" for its path.

    Raises:
      ConfigError: a file is missing or damaged, something in it is not supported, parts do not fit
        one another, or the package `tokenizers` is not installed.
    """
    folder = expand(folder)
    found = find_pipeline(folder)
    where = {name: str(part.config_path) for name, part in found.parts.items()}
    # All settings are checked before the first large file is read.
    schedule, prediction = read_schedule(found.scheduler_config, str(found.scheduler))
    unet, latent_shape = text_unet.read_options(found.parts[UNET].config, where[UNET])
    vae, scaling = autoencoder_kl.read_options(found.parts[VAE].config, where[VAE])
    text = clip_text.read_options(found.parts[TEXT].config, where[TEXT])
    assert found.tokenizer is not None
    tokenizer = read_tokenizer(found.tokenizer, text["positions"])
    _check_fit(folder, (unet, latent_shape), vae, text, tokenizer)
    parts = {
        UNET: read_part(
            found.parts[UNET],
            {"name": "text_unet", **unet},
            lambda net, *given: text_unet_weights.to_params(net, latent_shape[2], *given),
        ),
        VAE: read_part(
            found.parts[VAE], {"name": "autoencoder_kl", **vae}, autoencoder_kl.to_params
        ),
        TEXT: read_part(found.parts[TEXT], {"name": "clip_text", **text}, clip_text.to_params),
    }
    others = file_digest(found.scheduler, *tokenizer.files)
    digests = "".join([*(part.digest for part in parts.values()), others])
    return StableDiffusion(
        unet=parts[UNET],
        vae=parts[VAE],
        text_encoder=parts[TEXT],
        tokenizer=tokenizer,
        scaling=scaling,
        schedule=schedule,
        prediction=prediction,
        latent_shape=latent_shape,
        digest=hashlib.sha256(digests.encode()).hexdigest(),
        source=f"diffusers:{named or folder}",
        licence=licence_of(folder),
    )


def _check_fit(
    folder: Path,
    unet: tuple[Options, tuple[int, int, int]],
    vae: Options,
    text: Options,
    tokenizer: ClipTokenizer,
) -> None:
    """Raises `ConfigError` for parts that are not of one model."""
    options, latent_shape = unet
    pairs: list[tuple[str, Any, str, Any]] = [
        ("channels of the U-Net's latents", latent_shape[2], "vae", vae["latent_channels"]),
        ("cross_attention_dim of the U-Net", options["context_dim"], TEXT, text["width"]),
    ]
    for what, ours, part, theirs in pairs:
        if ours != theirs:
            raise ConfigError(
                f"{folder}: {what} is {ours}, and that of {part} is {theirs}. Copy all parts from "
                "one model."
            )
    if tokenizer.vocabulary > text["vocabulary"]:
        raise ConfigError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary} tokens, and {TEXT} "
            f"{text['vocabulary']}. Copy both from one model."
        )
