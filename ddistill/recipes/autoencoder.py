"""Autoencoders for latent diffusion (arXiv 2112.10752)."""

from typing import Any

from ddistill.recipes.common import Options, network, objective
from ddistill.recipes.digits import annealed
from ddistill.settings import StageSettings


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
        # At 1e-4 latents have 5 nats a dimension, and the decoder shows small errors of a teacher:
        # its samples have FD-infinity 8.4 (seed 3), with 5e-3 and half of its updates 2.5 (seed 0).
        loss={"reconstruction": "l2", "kl_weight": 5e-3},
        steps=600,
        batch_size=64,
        optimizer=annealed(2e-3),
        ema=(0.99,),
    )
