"""Text-conditional latent diffusion on captioned images of one's own."""

import dataclasses

from ml_collections import ConfigDict

from ddistill.data.latents.records import read_finished
from ddistill.errors import ConfigError
from ddistill.recipes.autoencoder import autoencoder_stage
from ddistill.recipes.common import (
    check_variant,
    experiment,
    network,
    objective,
    teacher_stage,
    to_config,
)
from ddistill.recipes.digits import annealed
from ddistill.runtime.files import expand
from ddistill.settings import (
    EvaluationSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)


def text_folder(path: str = "", *, name: str = "text_folder") -> Settings:
    """An autoencoder of captioned images, and a text-conditional teacher on its latents.

    Args:
      path: a set that `ddistill data latents --pipeline=pixels` has made.
      name: of the experiment.
    """
    words, length = 4096, 32
    if path:
        facts = read_finished(expand(path)).spec.tokenizer
        words, length = facts.vocabulary, facts.length
    stages = {"autoencoder": _autoencoder(), "teacher": _teacher(words, length)}
    made = experiment(
        name,
        {"name": "latents", "path": path},
        ScheduleSettings(name="cosine", steps=256),
        stages,
        EvaluationSettings(
            samples=256,
            batch_size=32,
            teacher_samplers={"ddim": (8, 16, 32)},
            full_steps=64,
            guidance=3.0,
            clip=0.0,
        ),
    )
    training = dataclasses.replace(made.training, checkpoint_every=100, preview_every=500)
    return dataclasses.replace(made, training=training)


def _autoencoder() -> StageSettings:
    net = network("autoencoder_kl", widths=(16, 32, 64), blocks=1, norm_groups=8)
    return autoencoder_stage(
        net,
        loss={"reconstruction": "l1", "kl_weight": 1e-4},
        steps=1600,
        batch_size=16,
        optimizer=annealed(2e-3, warmup=100),
        ema=(0.99,),
    )


def _teacher(words: int, length: int) -> StageSettings:
    net = network(
        "captioned_unet",
        widths=(64, 128),
        blocks=(1,),
        attends=(0, 1),
        heads=(4, 8),
        context_dim=64,
        norm_groups=16,
        out_channels=4,
        vocabulary=words,
        positions=length,
    )
    stage = teacher_stage(
        net,
        latents="autoencoder",
        steps=8000,
        batch_size=32,
        optimizer=annealed(1e-3, warmup=300),
        ema=(0.999,),
    )
    dropped = objective("denoising", error="v", weight="uniform", label_dropout=0.1)
    return dataclasses.replace(stage, objective=dropped)


def text_folder_config(variant: str = "") -> ConfigDict:
    """The config of `text_folder`, in a variant."""
    kind, _, path = variant.partition(":")
    if kind == "latents":
        if not path:
            raise ConfigError("The variant ':latents' needs the path of a set: ':latents:SET'.")
        return to_config(text_folder(path))
    check_variant(variant)
    return to_config(text_folder())
