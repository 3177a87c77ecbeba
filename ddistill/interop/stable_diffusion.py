"""Stable Diffusion from a folder of diffusers: U-Net, autoencoder, text encoder, tokenizer, levels.

The folder is that of a `StableDiffusionPipeline` (`pipeline_folders`). The networks are those of
ddistill; reading is strict, and needs neither torch nor diffusers nor transformers.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ddistill import networks
from ddistill.conditions import TextCondition
from ddistill.errors import ConfigError, check_choice
from ddistill.interop import autoencoder_kl, clip_text, text_unet, text_unet_weights
from ddistill.interop.autoencoder_kl import Scaling
from ddistill.interop.ddim import read_schedule
from ddistill.interop.imported import Imported
from ddistill.interop.licences import licence_of
from ddistill.interop.pipeline_folders import (
    TEXT,
    TOKENIZER,
    UNET,
    VAE,
    FoundPart,
    find_pipeline,
)
from ddistill.interop.tensors import file_digest
from ddistill.interop.tokenizer import ClipTokenizer, read_tokenizer
from ddistill.networks.autoencoder_kl import AutoencoderKL, draw, sample_noise
from ddistill.networks.clip_text import CLIPText
from ddistill.networks.text_encoding import POOLS, TextEncoder, encode_texts
from ddistill.runtime.files import expand
from ddistill.schedules import Schedule, build_schedule
from ddistill.typing import AnyArray, Images, Options, Params, RandomKey, Tree


@dataclass(frozen=True)
class Part:
    """A network of a pipeline.

    Attributes:
      network: its name in `ddistill.networks`, and its options.
      params: nested dictionaries of float32 arrays.
      digest: SHA-256 of its files, in hexadecimal.
    """

    network: Options
    params: Params
    digest: str

    def build(self, **changes: object) -> nn.Module:
        """The module, with other options where some are given, `dtype` for example."""
        return networks.build(**{**self.network, **changes})

    def on_device(self) -> "Part":
        """The same with its weights on jax's default device."""
        return dataclasses.replace(self, params=jax.device_put(self.params))


@dataclass(frozen=True)
class StableDiffusion:
    """A text-to-image model on latents.

    Latents here are the U-Net's: those of the autoencoder, shifted and scaled. The methods compute
    in float32; weights in the host's memory are copied to the device in every call, see
    `on_device`.

    Attributes:
      unet, vae, text_encoder: the networks "text_unet", "autoencoder_kl" and "clip_text".
      tokenizer: texts to token ids.
      scaling: of the autoencoder's latents.
      schedule: the fields of `ScheduleSettings` that the scheduler's file defines.
      prediction: the prediction type of the U-Net: "eps", "x0" or "v".
      latent_shape: (height, width, channels) of the latents that the U-Net was trained on.
      digest: SHA-256 of the digests of all files of the model, in hexadecimal.
      source: "diffusers:" and the folder.
      licence: of the weights; "" if unknown.
    """

    unet: Part
    vae: Part
    text_encoder: Part
    tokenizer: ClipTokenizer
    scaling: Scaling
    schedule: Options
    prediction: str
    latent_shape: tuple[int, int, int]
    digest: str
    source: str
    licence: str = ""

    def on_device(self) -> "StableDiffusion":
        """The same with the weights of autoencoder and text encoder on jax's default device."""
        encoder = self.text_encoder.on_device()
        return dataclasses.replace(self, vae=self.vae.on_device(), text_encoder=encoder)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the pictures."""
        height, width, _ = self.latent_shape
        vae = self.vae.build()
        return height * vae.factor, width * vae.factor, vae.out_channels

    def imported(self, folder: Path) -> Imported:
        """The U-Net as a stage starts from it.

        Args:
          folder: of the pipeline.
        """
        return Imported(
            network=self.unet.network,
            params=self.unet.params,
            prediction=self.prediction,
            schedule=self.schedule,
            image_shape=self.latent_shape,
            num_classes=0,
            digest=self.digest,
            source=self.source,
            licence=self.licence,
            parts={
                VAE: self.vae.digest,
                TEXT: self.text_encoder.digest,
                TOKENIZER: file_digest(*self.tokenizer.files),
            },
            folder=folder,
        )

    def levels(self) -> Schedule:
        """The noise levels that the U-Net was trained on."""
        settings = self.schedule
        return build_schedule(settings["name"], settings["steps"], **settings["options"])

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

        return _in_chunks(run, self.text_encoder.params, np.asarray(tokens, np.int32), chunk)

    def moments(self, images: Float[AnyArray, "B H W C"], chunk: int = 8) -> Images:
        """Means and log-variances `[B, h, w, 2c]` of the autoencoder's latents, not scaled.

        Args:
          images: in [-1, 1]; H and W divide by the autoencoder's factor.
          chunk: number of images that are encoded at the same time.
        """
        return moments_of(self.vae, images, chunk)

    def encode(
        self,
        images: Float[AnyArray, "B H W C"],
        key: RandomKey | None = None,
        chunk: int = 8,
    ) -> Images:
        """Latents `[B, h, w, c]` of images.

        Args:
          images: in [-1, 1]; H and W divide by the autoencoder's factor.
          key: for a draw from the Gaussian of each image, which depends on the image's index and
            not on `chunk`; None for the means.
          chunk: number of images that are encoded at the same time.
        """
        moments = self.moments(images, chunk)
        shape = (*moments.shape[:-1], moments.shape[-1] // 2)
        z = draw(moments, None if key is None else sample_noise(key, 0, shape))
        return (z - self.scaling.shift) * self.scaling.factor

    def decode(self, latents: Float[AnyArray, "B h w c"], chunk: int = 4) -> Images:
        """Pictures `[B, H, W, C]` of latents, about in [-1, 1] and not clipped.

        Args:
          latents: see the class.
          chunk: number of pictures that are decoded at the same time.
        """
        run = functools.partial(_decode, self.vae.build(), self.scaling)
        return _in_chunks(run, self.vae.params, np.asarray(latents, np.float32), chunk)


def moments_of(vae: Part, images: Float[AnyArray, "B H W C"], chunk: int = 8) -> Images:
    """Means and log-variances `[B, h, w, 2c]` of an autoencoder's latents, not scaled.

    Args:
      vae: the autoencoder of a pipeline.
      images: in [-1, 1]; H and W divide by the autoencoder's factor.
      chunk: number of images that are encoded at the same time.
    """
    run = functools.partial(_moments, vae.build())
    return _in_chunks(run, vae.params, np.asarray(images, np.float32), chunk)


@functools.partial(jax.jit, static_argnums=0)
def _moments(net: AutoencoderKL, params: Params, images: Array) -> Array:
    return _apply(net, params, images, "encode")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(net: AutoencoderKL, scaling: Scaling, params: Params, latents: Array) -> Array:
    z = latents / scaling.factor + scaling.shift
    return _apply(net, params, z, "decode")


def _apply(net: nn.Module, params: Params, x: Array, method: str | None = None) -> Any:
    return net.apply({"params": params}, x, method=method)


def _in_chunks(
    run: Callable[[Params, Array], Tree], params: Params, inputs: np.ndarray, size: int
) -> Tree:
    """`run` on `size` examples at a time, the last of them filled up, so that one program does."""
    params = jax.device_put(params)
    count = len(inputs)
    if count <= size:
        return run(params, jnp.asarray(inputs))
    fill = np.zeros((-count % size, *inputs.shape[1:]), inputs.dtype)
    filled = np.concatenate([inputs, fill])
    parts = [run(params, jnp.asarray(filled[i : i + size])) for i in range(0, count, size)]
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *parts)


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


def read_part(found: FoundPart, network: Options, to_params: Callable[..., Params]) -> Part:
    """A network of a pipeline.

    Args:
      found: its files.
      network: its name in `ddistill.networks`, and its options.
      to_params: (module, tensors, name of their file in messages) -> parameters.

    Raises:
      ConfigError: a file is damaged, or does not fit the options.
    """
    net = networks.build(**network)
    params = to_params(net, found.weights.read(), found.where)
    return Part(network, params, file_digest(*found.files))


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
