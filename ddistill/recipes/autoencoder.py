"""Autoencoders for latent diffusion (arXiv 2112.10752)."""

import dataclasses
from typing import Any

from ddistill.recipes.common import Options, network, objective
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


def text_digits() -> Settings:
    """An experiment on captioned digits: a classifier and an autoencoder.

    The classifier reads the digits of reconstructions; see `ddistill.evaluation.reconstructions`.
    """
    common = digits("text_digits", {})
    stages = {
        "classifier": common.stages["classifier"],
        "autoencoder": digits_autoencoder(),
    }
    return dataclasses.replace(
        common,
        data={"name": "text_digits"},
        stages=stages,
        pipeline=tuple(stages),
        evaluation=dataclasses.replace(common.evaluation, teacher=""),
    )
