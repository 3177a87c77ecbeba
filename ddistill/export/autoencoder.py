"""The autoencoder of an export: the teacher's bytes, or the network that the run has trained."""

from pathlib import Path

import jax

from ddistill.errors import ConfigError
from ddistill.export.diffusers_files import copy_network, write_network
from ddistill.export.facts import Exported
from ddistill.interop.autoencoder_kl import to_tensors, write_options
from ddistill.interop.pipeline_folders import VAE, find_part
from ddistill.interop.pipeline_parts import FOLDER
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
    if not isinstance(decoder.module, AutoencoderKL):
        raise ConfigError(
            f"stage '{source.name}', which decodes the latents, is a network "
            f"'{source.settings.network['name']}', which diffusers does not have. Use "
            "--to=stablehlo or --to=safetensors."
        )
    options = write_options(decoder.module, decoder.scaling, source.image_shape[0])
    tensors = dict(to_tensors(decoder.module, jax.device_get(decoder.params)))
    write_network(out / VAE, options, tensors)
    return True
