"""Pipelines of latent sets by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from ddistill.data.latents.pipeline import LatentPipeline, open_pixels
from ddistill.data.latents.teachers import open_diffusers
from ddistill.errors import ConfigError, nearest

# Opens a pipeline: what stands behind the colon of its name, and the captions of the set.
Opener: TypeAlias = Callable[[str, Sequence[str]], LatentPipeline]
# By name. A kind of pipeline is a line here.
PIPELINES: dict[str, Opener] = {"pixels": open_pixels, "diffusers": open_diffusers}


def open_pipeline(
    text: str, captions: Sequence[str], kinds: Mapping[str, Opener] = PIPELINES
) -> LatentPipeline:
    """Opens the pipeline that a text names.

    Args:
      text: KIND or KIND:PATH, where KIND is one of `kinds`.
      captions: of the training images.
      kinds: openers by name.

    Raises:
      ConfigError: the kind is not known.
      DataError, ConfigError: as its opener.
    """
    kind, _, path = text.partition(":")
    if kind not in kinds:
        raise ConfigError(
            f"pipeline={text!r}: {kind!r} is not known.{nearest(kind, kinds)} "
            f"Allowed: {', '.join(kinds)}."
        )
    return kinds[kind](path, captions)
