"""Text-conditional latent diffusion on a folder of captioned images."""

import dataclasses

from ml_collections import ConfigDict

from ddistill.data.latents.records import read_finished
from ddistill.errors import ConfigError
from ddistill.recipes.autoencoder import autoencoder_stage
from ddistill.recipes.common import check_variant, experiment, network, teacher_stage, to_config
from ddistill.recipes.digits import annealed
from ddistill.runtime.files import expand
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
        steps=1600,
        batch_size=16,
        optimizer=annealed(2e-3, warmup=100),
        ema=(0.99,),
    )
    return experiment(
        "text_folder",
        {"name": "folder", "path": folder, "image_size": image_size},
        ScheduleSettings(name="cosine", steps=256),
        {"autoencoder": stage},
        EvaluationSettings(teacher=""),
        checkpoint_every=250,
    )


def text_latents(path: str) -> Settings:
    """A text-conditional teacher on a set of latents.

    Args:
      path: of the set.
    """
    facts = read_finished(expand(path)).spec.tokenizer
    net = network(
        "captioned_unet",
        widths=(64, 128),
        blocks=(1,),
        attends=(0, 1),
        heads=(4, 8),
        context_dim=64,
        norm_groups=16,
        out_channels=4,
        vocabulary=facts.vocabulary,
        positions=facts.length,
    )
    teacher = teacher_stage(
        net,
        steps=8000,
        batch_size=64,
        optimizer=annealed(1e-3, warmup=300),
        ema=(0.999,),
        conditional=True,
    )
    teacher = dataclasses.replace(
        teacher, objective={**teacher.objective, "label_dropout": 0.1, "null_class": 0}
    )
    return experiment(
        "text_latents",
        {"name": "latents", "path": path},
        ScheduleSettings(name="cosine", steps=256),
        {"teacher": teacher},
        EvaluationSettings(
            samples=256,
            batch_size=32,
            teacher_samplers={"ddim": (8, 16, 32)},
            full_steps=64,
            guidance=3.0,
            clip=0.0,
        ),
        checkpoint_every=200,
    )


def text_folder_config(settings: Settings, variant: str = "") -> ConfigDict:
    """The config of `text_folder`, in a variant."""
    kind, _, path = variant.partition(":")
    if kind == "latents":
        if not path:
            raise ConfigError("The variant ':latents' needs the path of a set: ':latents:SET'.")
        return to_config(text_latents(path))
    check_variant(variant)
    return to_config(settings, variant)
