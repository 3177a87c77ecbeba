"""DiT from a folder of diffusers: transformer, autoencoder, levels.

The folder is that of a `DiTPipeline` (`pipeline_folders`). Reading is strict, and needs neither
torch nor diffusers.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ddistill.errors import ConfigError
from ddistill.interop import autoencoder_kl, dit
from ddistill.interop.autoencoder_kl import Scaling
from ddistill.interop.ddim import read_schedule
from ddistill.interop.imported import Imported
from ddistill.interop.licences import licence_of
from ddistill.interop.pipeline_folders import TRANSFORMER, VAE, find_class_pipeline
from ddistill.interop.stable_diffusion import Part, read_part
from ddistill.interop.tensors import file_digest
from ddistill.runtime.files import expand
from ddistill.typing import Options


@dataclass(frozen=True)
class DiTPipeline:
    """A class-conditional model on latents.

    Attributes:
      transformer, vae: the networks "dit" and "autoencoder_kl".
      scaling: of the autoencoder's latents.
      schedule: the fields of `ScheduleSettings` that the scheduler's file defines.
      prediction: the prediction type of the transformer.
      latent_shape: (height, width, channels) of the latents that it was trained on.
      digest: SHA-256 of the digests of all files of the model, in hexadecimal.
      source: "diffusers:" and the folder.
      licence: of the weights; "" if unknown.
    """

    transformer: Part
    vae: Part
    scaling: Scaling
    schedule: Options
    prediction: str
    latent_shape: tuple[int, int, int]
    digest: str
    source: str
    licence: str = ""

    def imported(self, folder: Path) -> Imported:
        """The transformer as a stage starts from it; `folder` is the pipeline's."""
        return Imported(
            network=self.transformer.network,
            params=self.transformer.params,
            prediction=self.prediction,
            schedule=self.schedule,
            image_shape=self.latent_shape,
            num_classes=self.transformer.network["num_classes"],
            digest=self.digest,
            source=self.source,
            licence=self.licence,
            parts={VAE: self.vae.digest},
            folder=folder,
        )


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
