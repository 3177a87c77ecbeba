"""Checks of the networks of a stage against its images, classes and optimisers."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from flax import linen as nn

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.weights import traced_shapes
from ddistill.objectives import Objective
from ddistill.objectives.parts import FeatureShapes
from ddistill.optimizers import check_optimizer
from ddistill.planning.context import StageContext
from ddistill.settings import StageSettings
from ddistill.text import one_line


@dataclass(frozen=True)
class Traced:
    """What tracing a network on shapes shows.

    Attributes:
      output: `(1, H, W, C)` of an image network, `(1, C)` of a classifier.
      features: by feature tap, the shape (H, W, C); empty unless taps are read.
      batch_norm: whether the network has running statistics.
    """

    output: tuple[int, ...]
    features: FeatureShapes
    batch_norm: bool


def _trace(
    module: nn.Module, taps: tuple[str, ...], inputs: tuple[jax.ShapeDtypeStruct | None, ...]
) -> Traced:
    out, variables = traced_shapes(module, *inputs, taps=taps)
    features = {tap: x.shape[1:] for tap, x in out[-1].items()} if taps else {}
    first = out[0] if isinstance(out, tuple) else out
    return Traced(first.shape, features, "batch_stats" in variables)


def check_network(
    context: StageContext, objective: Objective, module: nn.Module, taps: tuple[str, ...]
) -> FeatureShapes:
    """Traces a network on shapes alone and compares its output with the images.

    Args:
      context: the stage.
      objective: its method, which says what the network is called with.
      module: the student's network, or the teacher's.
      taps: the feature taps that the losses read of it.

    Returns:
      By tap of `taps`, the shape (H, W, C) of the features there.

    Raises:
      ConfigError: the network refuses this image size, has no such feature taps, or its output
        has another shape.
    """
    stage, path, shape = context.settings, context.path, context.data.image_shape
    texts = bool(getattr(module, "reads_text", False))
    if stage.conditional and not texts and not getattr(module, "num_classes", 0):
        raise ConfigError(f"{path}.conditional=True needs {path}.network.num_classes above 0.")
    inputs = objective.trains.shapes_of(module, shape, stage.conditional)
    try:
        traced = _trace(module, taps, inputs)
    except ConfigError as error:
        raise ConfigError(f"{path}.network: {error}") from None
    except (TypeError, ValueError, ArithmeticError) as error:  # raised by jax for odd sizes
        described = ", ".join(f"{k}={v!r}" for k, v in stage.network.items())
        raise ConfigError(
            f"{path}.network ({described}) cannot be built for images of shape {shape}: "
            f"{one_line(error)}"
        ) from error
    if traced.batch_norm:
        _check_batch_norm(stage, path)
    for tap in taps:
        check_choice(f"{path}.objective: feature tap", tap, traced.features)
    if hasattr(module, "out_channels") and traced.output[1:] != shape:
        raise ConfigError(
            f"{path}.network gives images of shape {traced.output[1:]}, the data are {shape}: "
            f"set network.out_channels={shape[-1]} or data.channels={traced.output[-1]}."
        )
    return {tap: traced.features[tap] for tap in taps}


def check_classifier_taps(context: StageContext, taps: tuple[str, ...]) -> FeatureShapes:
    """The shapes (H, W, C) of the classifier's features at `taps`, for images of the data.

    Raises:
      ConfigError: the classifier has no such features.
    """
    if not taps:
        return {}
    path, name = context.path, context.settings.classifier
    plan = context.earlier[name]  # checked before
    image = jax.ShapeDtypeStruct((1, *context.data.image_shape), "float32")
    kind = plan.settings.network["name"]
    try:
        traced = _trace(plan.module, taps, (image,))
    except TypeError as error:  # a user's network without the argument `taps`
        raise ConfigError(
            f"{path}.classifier={name!r}: its network '{kind}' has no features to tap, but the "
            f"losses read {', '.join(taps)}: {one_line(error)}"
        ) from error
    for tap in taps:
        check_choice(f"{path}.classifier={name!r}: feature tap", tap, traced.features)
    return {tap: traced.features[tap] for tap in taps}


def _check_batch_norm(stage: StageSettings, path: str) -> None:
    if stage.ema:
        raise ConfigError(
            f"{path}.ema={stage.ema}, but the network has batch norms, whose running statistics "
            "belong to the raw weights and not to an average of them. Set ema=()."
        )
    if stage.accumulate > 1:
        raise ConfigError(
            f"{path}.accumulate={stage.accumulate}, but the network has batch norms, which need "
            "the whole batch at once. Set accumulate=1, and a smaller batch_size if memory is "
            "short."
        )


def check_optimizers(context: StageContext, networks: Mapping[str, nn.Module]) -> None:
    """Raises `ConfigError` for optimisers of networks that do not exist, or that cannot work.

    Args:
      context: the stage.
      networks: by name, the networks that are trained beside the student.
    """
    stage, path = context.settings, context.path
    for name, optimizer in stage.optimizers.items():
        if not networks:
            raise ConfigError(
                f"{path}.optimizers names '{name}', but '{stage.objective['name']}' trains the "
                f"student alone; set {path}.optimizer."
            )
        check_choice(f"{path}.optimizers", name, networks)
        check_optimizer(optimizer, stage.steps, f"{path}.optimizers.{name}")


def check_classes(context: StageContext, objective: Objective, module: nn.Module) -> None:
    """Raises `ConfigError` unless the classes of the network fit the classes of the data."""
    stage, path, there = context.settings, context.path, context.data.num_classes
    here, own = getattr(module, "num_classes", 0), objective.trains.classes
    # An imported classifier has the classes of its own training, and is not trained here.
    trained = objective.trains.kind == "classifier" and context.imported is None
    if trained and here != (own or there):
        reason = f"objective '{stage.objective['name']}' tells {own}" if own else "the data have"
        raise ConfigError(
            f"{path}.network.num_classes={here}, but {reason}{'' if own else f' {there}'} classes"
            f"{' apart' if own else ''}: set it to {own or there}."
        )
    if not stage.conditional or getattr(module, "reads_text", False):
        return
    if here < there:
        raise ConfigError(
            f"{path}.network.num_classes={here} is below the {there} classes of the data; set it "
            f"to {there}, or {path}.conditional=False."
        )
    if there < 2:
        raise ConfigError(
            f"{path}.conditional=True, but the data have one class, which is to say no labels: all "
            f"other classes of the network would stay as they were drawn. Set {path}.conditional="
            "False, or give data with labels (a folder for each class, or data.label_key)."
        )
