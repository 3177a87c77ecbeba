"""Autoencoders for latent diffusion (arXiv 2112.10752)."""

import dataclasses
from typing import Any

from ddistill.data.text_digits import LENGTH, digit_tokenizer
from ddistill.recipes.common import Options, network, objective, teacher_stage
from ddistill.recipes.digits import annealed, digits
from ddistill.settings import Settings, StageSettings


def autoencoder_stage(net: Options, *, loss: Options | None = None, **stage: Any) -> StageSettings:
    """An autoencoder that is trained on the images of the data; shared between runs.

    Args:
      net: the network's name and options, "autoencoder_kl" for example; see `network`.
      loss: hyperparameters of `ddistill.objectives.autoencoder.Autoencoder`.
      **stage: fields of `StageSettings`; `steps` and `batch_size` are required.
    """
    return StageSettings(
        objective=objective("autoencoder", **(loss or {})),
        network=net,
        **{"shared": True, **stage},
    )


def digits_autoencoder() -> StageSettings:
    """An autoencoder of 8x8 digits with latents of 4x4x4: 167 thousand parameters."""
    net = network(
        "autoencoder_kl",
        widths=(16, 32),
        blocks=1,
        latent_channels=4,
        out_channels=1,
        norm_groups=8,
    )
    return autoencoder_stage(
        net,
        loss={"reconstruction": "l2", "kl_weight": 1e-4},
        steps=600,
        batch_size=64,
        optimizer=annealed(2e-3),
        ema=(0.99,),
    )


def text_digits_teacher(width: int = 32) -> StageSettings:
    """A teacher of captioned digits that learns its text encoder, on latents of 4x4x4.

    Cross-attention is on both levels, and a tenth of the captions is replaced by the empty text.

    Args:
      width: channels of the outer level of the U-Net.
    """
    net = network(
        "captioned_unet",
        widths=(width, 2 * width),
        blocks=(1,),
        attends=(0, 1),
        heads=(4,),
        context_dim=64,
        norm_groups=8,
        out_channels=4,
        vocabulary=digit_tokenizer().facts.vocabulary,
        positions=LENGTH,
    )
    stage = teacher_stage(
        net,
        error="v",
        latents="autoencoder",
        steps=2000,
        batch_size=128,
        optimizer=annealed(2e-3, warmup=100),
        ema=(0.995,),
    )
    dropped = objective("denoising", error="v", weight="uniform", label_dropout=0.1)
    return dataclasses.replace(stage, objective=dropped)


def text_digits() -> Settings:
    """An experiment on captioned digits: a classifier, an autoencoder, a teacher on its latents.

    The classifier reads the digits of reconstructions and of samples.
    """
    common = digits("text_digits", {})
    stages = {
        "classifier": common.stages["classifier"],
        "autoencoder": digits_autoencoder(),
        "teacher": text_digits_teacher(),
    }
    return dataclasses.replace(
        common,
        data={"name": "text_digits"},
        stages=stages,
        pipeline=tuple(stages),
        evaluation=dataclasses.replace(
            common.evaluation,
            teacher_samplers={"ddim": (1, 2, 4, 8)},
            full_steps=32,
            guidance=3.0,
            guidances=(1.0,),
            clip=0.0,
            interpolations=0,
        ),
    )
