"""Pipelines of latent sets by name."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from ddistill.data.latents.pipeline import LatentPipeline, open_pixels
from ddistill.data.latents.teachers import open_diffusers
from ddistill.errors import ConfigError, nearest

# Opens a pipeline: what stands behind the colon of its name, and the captions of the set.
Opener: TypeAlias = Callable[[str, Sequence[str]], LatentPipeline]
# By name. A kind of pipeline is a line here.
PIPELINES: dict[str, Opener] = {"pixels": open_pixels, "diffusers": open_diffusers}


def open_pipeline(text: str, captions: Sequence[str]) -> LatentPipeline:
    """Opens the pipeline that a text names.

    Args:
      text: KIND or KIND:PATH, where KIND is one of `PIPELINES`.
      captions: of the training images.

    Raises:
      ConfigError: the kind is not known.
      DataError, ConfigError: as its opener.
    """
    kind, _, path = text.partition(":")
    if kind not in PIPELINES:
        raise ConfigError(
            f"pipeline={text!r}: {kind!r} is not known.{nearest(kind, PIPELINES)} "
            f"Allowed: {', '.join(PIPELINES)}."
        )
    return PIPELINES[kind](path, captions)
