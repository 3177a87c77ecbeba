"""The autoencoder of an export: the teacher's bytes, or the network that the run has trained."""

from pathlib import Path

import jax

from ddistill.errors import ConfigError
from ddistill.export.diffusers_files import copy_network, write_network
from ddistill.export.facts import Exported
from ddistill.interop.autoencoder_kl import to_tensors, write_options
from ddistill.interop.pipeline_folders import VAE, find_part
from ddistill.interop.pipeline_parts import FOLDER, Decoder
from ddistill.networks.autoencoder_kl import AutoencoderKL


def write_autoencoder(exported: Exported, out: Path) -> bool:
    """Writes vae/ into the folder `out`, and returns whether there is one.

    Args:
      exported: the network; of latents of an autoencoder of its run with its `decoder`.
      out: the folder of the export.

    Raises:
      ConfigError: diffusers does not have the network of the autoencoder, or a file of it is gone.
    """
    plan = exported.sampler_run.plan
    source, decoder = plan.latent_source, exported.decoder
    if source is None:
        if plan.sees_latents:
            copy_network(find_part(plan.text_stage.folder / FOLDER, VAE), out / VAE)
        return plan.sees_latents
    assert decoder is not None
    write_learnt_autoencoder(decoder, source.image_shape[0], out / VAE)
    return True


def write_learnt_autoencoder(decoder: Decoder, side: int, folder: Path) -> None:
    """Writes the network that a run has trained, as diffusers reads it.

    Args:
      decoder: the autoencoder.
      side: height of its pictures.
      folder: of the network.

    Raises:
      ConfigError: diffusers does not have the network.
    """
    if not isinstance(decoder.module, AutoencoderKL):
        name = type(decoder.module).__name__
        raise ConfigError(
            f"diffusers does not have the autoencoder of the latents, {name}. Use --to=stablehlo "
            "or --to=safetensors."
        )
    options = write_options(decoder.module, decoder.scaling, side)
    write_network(folder, options, dict(to_tensors(decoder.module, jax.device_get(decoder.params))))
