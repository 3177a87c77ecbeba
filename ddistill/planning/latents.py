"""Stages that are trained on latents of an encoder that an earlier stage has trained.

The encoder is a part of the train step, so that nothing is stored, mirrored images are encoded as
such, and data sets that are read from disk need no pass of their own. Latents of large images cost
less as a set (`ddistill data latents`), in which every image is encoded once.
"""

import dataclasses
import functools

import jax
from flax import linen as nn

from ddistill.errors import ConfigError, nearest
from ddistill.networks.weights import variable_shapes
from ddistill.objectives import Objective
from ddistill.objectives.parts import ImageShape
from ddistill.planning.context import StageContext
from ddistill.planning.plan import StagePlan


def on_latents(context: StageContext) -> StageContext:
    """The context with its teacher's `latents`, and with the shape of latents as that of its data.

    Raises:
      ConfigError: the stage of the latents is not an earlier one that trains an encoder, or the
        images of the data cannot be encoded.
    """
    name = context.settings.latents
    if not name and context.teacher is not None:
        name = context.teacher.settings.latents
    if not name:
        return context
    source = _source(context, name)
    shape = latent_shape(source, f"{context.path}.latents={name!r}")
    return dataclasses.replace(
        context,
        settings=dataclasses.replace(context.settings, latents=name),
        data=dataclasses.replace(context.data, image_shape=shape),
    )


def latent_shape(source: StagePlan, named: str) -> ImageShape:
    """(h, w, c) of the latents that the network of a stage makes of its images.

    Args:
      source: the stage.
      named: the setting that names it, for messages.

    Raises:
      ConfigError: the network does not encode images of this size.
    """
    try:
        height, width, channels = _encoded_shape(source.module, source.image_shape)
    except ConfigError as error:
        raise ConfigError(f"{named}: {error}") from None
    return height, width, channels // 2


# Every stage on the latents of one encoder asks for the shape.
@functools.lru_cache(maxsize=16)
def _encoded_shape(module: nn.Module, image_shape: ImageShape) -> tuple[int, ...]:
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    encode = functools.partial(module.apply, method="encode")
    found: jax.ShapeDtypeStruct = jax.eval_shape(encode, variable_shapes(module, image), image)
    return found.shape[1:]


def check_latents(context: StageContext, objective: Objective) -> None:
    """Raises `ConfigError` for settings that cannot be with the stage's latents, or without."""
    stage, path, teacher = context.settings, context.path, context.teacher
    if teacher is not None and teacher.settings.latents != stage.latents:
        theirs = teacher.settings.latents
        has = f"is trained on the latents of '{theirs}'" if theirs else "is trained on images"
        raise ConfigError(
            f"{path}.latents={stage.latents!r}, but its teacher '{teacher.name}' {has}. Leave "
            "latents out: it is the teacher's."
        )
    if not stage.latents:
        return
    if not objective.trains.on_levels:
        raise ConfigError(
            f"{path}.latents={stage.latents!r}, but the stage trains {objective.trains.called}, "
            "which reads images. Leave latents out."
        )
    clip = context.run.evaluation.clip
    if clip:
        raise ConfigError(
            f"config.evaluation.clip={clip} bounds predictions of pixels, and stage "
            f"'{context.name}' sees latents. Set config.evaluation.clip=0."
        )
    if stage.classifier:
        raise ConfigError(
            f"{path}.classifier={stage.classifier!r} reads images, and the stage sees latents. "
            "Leave it out, and compare in latents."
        )


def _source(context: StageContext, name: str) -> StagePlan:
    path, data = context.path, context.data
    making = {n: p for n, p in context.earlier.items() if p.objective.trains.makes_latents}
    if name not in making:
        names = ", ".join(making) or "none, because no stage before this one trains an encoder"
        raise ConfigError(
            f"{path}.latents={name!r} is not an earlier stage of config.pipeline that trains "
            f"an encoder of images.{nearest(name, making)} Allowed: {names}."
        )
    source = making[name]
    if source.stacked:
        raise ConfigError(
            f"{path}.latents={name!r} trains {source.settings.students.count} networks. Name a "
            "stage of one network."
        )
    if data.encoder is not None and data.encoder.digest:
        raise ConfigError(f"{path}.latents={name!r}: the data {data.name} are latents already.")
    if context.imported is not None and context.imported.parts:
        raise ConfigError(
            f"{path}.latents={name!r}: {path}.source={context.settings.source!r} has an encoder of "
            "its own. Leave latents out."
        )
    return source
