"""Models on latents from folders of diffusers: what text-to-image models and DiT have in common.

Autoencoder, noise levels, and the facts of a denoiser that a stage starts from.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill import networks
from ddistill.interop.autoencoder_kl import Scaling
from ddistill.interop.imported import Imported
from ddistill.interop.pipeline_folders import FoundPart
from ddistill.interop.tensors import file_digest
from ddistill.networks.autoencoder_kl import AutoencoderKL, draw, sample_noise
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


@dataclass(frozen=True, kw_only=True)
class LatentModel:
    """A diffusion model on the latents of an autoencoder.

    Latents here are the denoiser's: those of the autoencoder, shifted and scaled. The methods
    compute in float32; weights in the host's memory are copied to the device in every call, see
    `on_device`.

    Attributes:
      vae: the network "autoencoder_kl".
      scaling: of the autoencoder's latents.
      schedule: the fields of `ScheduleSettings` that the scheduler's file defines.
      prediction: the prediction type of the denoiser, one of `ddistill.diffusion.KINDS`.
      latent_shape: (height, width, channels) of the latents that it was trained on.
      digest: SHA-256 of the digests of all files of the model, in hexadecimal.
      source: "diffusers:" and the folder.
      licence: of the weights; "" if unknown.
    """

    vae: Part
    scaling: Scaling
    schedule: Options
    prediction: str
    latent_shape: tuple[int, int, int]
    digest: str
    source: str
    licence: str = ""

    def on_device(self) -> Self:
        """The same with the weights of the autoencoder on jax's default device."""
        return dataclasses.replace(self, vae=self.vae.on_device())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the pictures."""
        height, width, _ = self.latent_shape
        vae = self.vae.build()
        return height * vae.factor, width * vae.factor, vae.out_channels

    def levels(self) -> Schedule:
        """The noise levels that the denoiser was trained on."""
        settings = self.schedule
        return build_schedule(settings["name"], settings["steps"], **settings["options"])

    def imported_as(
        self, denoiser: Part, num_classes: int, parts: Mapping[str, str], folder: Path
    ) -> Imported:
        """The denoiser as a stage starts from it.

        Args:
          denoiser: the network.
          num_classes: 0 for one that reads no classes.
          parts: digests of the other parts, see `Imported`.
          folder: of the pipeline.
        """
        return Imported(
            network=denoiser.network,
            params=denoiser.params,
            prediction=self.prediction,
            schedule=self.schedule,
            image_shape=self.latent_shape,
            num_classes=num_classes,
            digest=self.digest,
            source=self.source,
            licence=self.licence,
            parts=parts,
            folder=folder,
        )

    def moments(self, images: Float[AnyArray, "B H W C"], chunk: int = 8) -> Images:
        """Means and log-variances `[B, h, w, 2c]` of the autoencoder's latents, not scaled.

        Args:
          images: in [-1, 1]; H and W divide by the autoencoder's factor.
          chunk: number of images that are encoded at the same time.
        """
        run = functools.partial(_moments, self.vae.build())
        return in_chunks(run, self.vae.params, np.asarray(images, np.float32), chunk)

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
        return in_chunks(run, self.vae.params, np.asarray(latents, np.float32), chunk)


@functools.partial(jax.jit, static_argnums=0)
def _moments(net: AutoencoderKL, params: Params, images: Array) -> Array:
    return _apply(net, params, images, "encode")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(net: AutoencoderKL, scaling: Scaling, params: Params, latents: Array) -> Array:
    z = latents / scaling.factor + scaling.shift
    return _apply(net, params, z, "decode")


def _apply(net: nn.Module, params: Params, x: Array, method: str | None = None) -> Any:
    return net.apply({"params": params}, x, method=method)


def in_chunks(
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
