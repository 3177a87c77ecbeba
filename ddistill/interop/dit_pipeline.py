"""DiT from a folder of diffusers: transformer, autoencoder, levels.

The folder is that of a `DiTPipeline` (`pipeline_folders`). Reading is strict, and needs neither
torch nor diffusers.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ddistill.errors import ConfigError
from ddistill.interop import autoencoder_kl, dit
from ddistill.interop.ddim import read_schedule
from ddistill.interop.imported import Imported
from ddistill.interop.latent_models import LatentModel, Part, read_part
from ddistill.interop.licences import licence_of
from ddistill.interop.pipeline_folders import TRANSFORMER, VAE, find_class_pipeline
from ddistill.interop.tensors import file_digest
from ddistill.runtime.files import expand


@dataclass(frozen=True, kw_only=True)
class DiTPipeline(LatentModel):
    """A class-conditional model on latents.

    Attributes beside those of `LatentModel`:
      transformer: the network "dit".
    """

    transformer: Part

    def imported(self, folder: Path) -> Imported:
        """The transformer as a stage starts from it; `folder` is the pipeline's."""
        classes = self.transformer.network["num_classes"]
        return self.imported_as(self.transformer, classes, {VAE: self.vae.digest}, folder)


def read_dit_pipeline(folder: Path, named: str = "") -> DiTPipeline:
    """The model in the folder of a `DiTPipeline`.

    Args:
      folder: with model_index.json.
      named: its name in `DiTPipeline.source`; "" for its path.

    Raises:
      ConfigError: a file is missing or damaged, something in it is not supported, or the parts do
        not fit one another.
    """
    folder = expand(folder)
    found = find_class_pipeline(folder)
    files = found.parts[TRANSFORMER], found.parts[VAE]
    where = [str(part.config_path) for part in files]
    # All settings are checked before the first large file is read.
    schedule, prediction = read_schedule(found.scheduler_config, str(found.scheduler))
    options, latent_shape = dit.read_options(files[0].config, where[0])
    vae_options, scaling = autoencoder_kl.read_options(files[1].config, where[1])
    if vae_options["latent_channels"] != latent_shape[2]:
        raise ConfigError(
            f"{folder}: {TRANSFORMER} has {latent_shape[2]} channels, and the latents of {VAE} "
            f"{vae_options['latent_channels']}. Copy both from one model."
        )
    transformer = read_part(
        files[0],
        {"name": "dit", **options},
        lambda net, *given: dit.to_params(net, latent_shape, *given),
    )
    vae = read_part(files[1], {"name": "autoencoder_kl", **vae_options}, autoencoder_kl.to_params)
    digests = transformer.digest + vae.digest + file_digest(found.scheduler)
    return DiTPipeline(
        transformer=transformer,
        vae=vae,
        scaling=scaling,
        schedule=schedule,
        prediction=prediction,
        latent_shape=latent_shape,
        digest=hashlib.sha256(digests.encode()).hexdigest(),
        source=f"diffusers:{named or folder}",
        licence=licence_of(folder),
    )
