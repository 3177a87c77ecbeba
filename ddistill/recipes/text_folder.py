"""Text-conditional latent diffusion on a folder of captioned images."""

import dataclasses

from ml_collections import ConfigDict

from ddistill.recipes.autoencoder import autoencoder_stage
from ddistill.recipes.common import check_variant, experiment, network, to_config
from ddistill.recipes.digits import annealed
from ddistill.settings import EvaluationSettings, ScheduleSettings, Settings


def text_folder(folder: str = "", *, image_size: int = 32) -> Settings:
    """An autoencoder of the images of a folder.

    Args:
      folder: path of the images, as `ddistill.data.folder.FolderSettings.path`.
      image_size: side in pixels, a multiple of 4.
    """
    net = network("autoencoder_kl", widths=(16, 32, 64), blocks=1, norm_groups=8)
    stage = autoencoder_stage(
        net,
        loss={"reconstruction": "l1", "kl_weight": 1e-4},
        steps=2000,
        batch_size=32,
        optimizer=annealed(2e-3, warmup=100),
        ema=(0.99,),
    )
    settings = experiment(
        "text_folder",
        {"name": "folder", "path": folder, "image_size": image_size},
        ScheduleSettings(name="cosine", steps=256),
        {"autoencoder": stage},
        EvaluationSettings(teacher=""),
        checkpoint_every=250,
    )
    return dataclasses.replace(settings)


def text_folder_config(settings: Settings, variant: str = "") -> ConfigDict:
    """The config of `text_folder`, in a variant."""
    check_variant(variant)
    return to_config(settings, variant)
