"""Scalars that a network is given beside its time: guidance, a number of steps, a second time.

A network with `extras=("guidance",)` embeds the guidance as it embeds the time, and adds the result
to the embedding of the time. The last layer is zero before training, so that weights of the same
network without the input give the same outputs. `Denoiser.given` gives the values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.convolution import zeros
from ddistill.networks.layers import embedding_layer, sinusoidal_embedding
from ddistill.schedules import Level

# Begins the names of the parameters of an extra input.
PREFIX = "extra_"


@dataclass(frozen=True)
class ExtraInput:
    """A scalar input of a network.

    Attributes:
      scale: factor of the value before the sinusoids, whose frequencies go from 1 to 1/10000; None
        for the network's factor of the time.
      of_step: (level where a step of a sampler starts, level where it ends) -> value, for an input
        that differs from step to step. None for an input with one value for all steps.
    """

    scale: float | None
    of_step: Callable[[Level, Level], Array] | None = None


EXTRAS: dict[str, ExtraInput] = {
    # Scale of classifier-free guidance; LCM (arXiv 2310.04378) multiplies it by 1000, too.
    "guidance": ExtraInput(1000.0),
    "step_count": ExtraInput(100.0),
    "end_time": ExtraInput(None, lambda here, there: there.time),
}


def check_extras(names: Sequence[str]) -> None:
    """Raises `ConfigError` for extra inputs that do not exist or are named twice."""
    for name in names:
        check_choice("extras", name, EXTRAS)
    if len(set(names)) < len(names):
        raise ConfigError(f"extras={tuple(names)}: every input can be named once.")


def parameter_names(names: Sequence[str]) -> tuple[str, ...]:
    """The entries of a network's parameters that belong to these extra inputs."""
    return tuple(f"{PREFIX}{name}" for name in names)


class ExtraEmbedding(nn.Module):
    """Sinusoids, a linear layer, SiLU, and a linear layer that is zero before training.

    Attributes:
      width: of the result.
      features: number of sinusoids.
      scale: factor of the value before the sinusoids.
    """

    width: int
    features: int
    scale: float

    @nn.compact
    def __call__(self, value: Float[Array, " B"]) -> Float[Array, "B E"]:
        """Returns the embedding of the values, `[B, width]`."""
        waves = sinusoidal_embedding(value * self.scale, self.features)
        hidden = nn.silu(embedding_layer(self.width, "dense_0")(waves))
        embedded: Array = embedding_layer(self.width, "dense_1", kernel_init=zeros)(hidden)
        return embedded


def add_extras(
    net: nn.Module,
    embedding: Float[Array, "B E"],
    extra: Float[Array, "B X"] | None,
    time_scale: float = 1.0,
    features: int = 0,
) -> Float[Array, "B E"]:
    """Adds the embeddings of a network's extra inputs; to be called in its compact method.

    Args:
      net: the network, with the fields `extras` and, without `features`, `channels`.
      embedding: of the time, before the last activation.
      extra: the values, a column per name in `extras`; None initialises the parameters.
      time_scale: the network's factor of the time.
      features: number of sinusoids; 0 for `channels` of the network.

    Raises:
      ValueError: the network has extra inputs and `extra` is None, or has another number of
        columns.
    """
    names: tuple[str, ...] = net.extras  # type: ignore[attr-defined]
    if extra is None:
        if names and not net.is_initializing():
            raise ValueError(f"The network takes {', '.join(names)}, and extra is None.")
        extra = jnp.zeros((embedding.shape[0], len(names)))
    if extra.shape[1:] != (len(names),):
        raise ValueError(f"extra of shape {extra.shape}; the network takes {names}.")
    for i, (name, entry) in enumerate(zip(names, parameter_names(names))):
        scale = EXTRAS[name].scale
        embed = ExtraEmbedding(
            embedding.shape[-1],
            features or net.channels,  # type: ignore[attr-defined]
            time_scale if scale is None else scale,
            name=entry,
        )
        embedding = embedding + embed(extra[:, i])
    return embedding
