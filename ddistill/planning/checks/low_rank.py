"""Checks of networks that are trained as factors of low rank on frozen weights."""

import jax
from flax import linen as nn
from jaxtyping import PyTree

from ddistill.errors import ConfigError, check_choice
from ddistill.low_rank import adapted_layers, adapting, draw_factors
from ddistill.networks import extra_inputs
from ddistill.networks.weights import variable_shapes
from ddistill.objectives import Objective
from ddistill.objectives.parts import DENOISER
from ddistill.planning.build import in_full
from ddistill.planning.context import StageContext
from ddistill.typing import Params

_TRAIN_WHOLE = "or low_rank.rank=0, which trains whole networks"


def check_low_rank(context: StageContext, objective: Objective, student: nn.Module) -> None:
    """Raises `ConfigError` where networks of low rank have no base, or no layers that can adapt.

    Args:
      context: the stage.
      objective: its method, prepared for the networks.
      student: the student's network.
    """
    stage, path = context.settings, f"{context.path}.low_rank"
    settings = stage.low_rank
    if settings.rank < 0:
        raise ConfigError(f"{path}.rank={settings.rank} must be 0 (off) or more.")
    if not settings.rank:
        return
    copies = {n: own.module for n, own in objective.auxiliaries.items() if own.start == "teacher"}
    for name in settings.networks:
        check_choice(f"{path}.networks", name, ("student", *copies))
    if not settings.networks:
        raise ConfigError(f"{path}.networks is empty. Name 'student', {_TRAIN_WHOLE}.")
    forms = [objective.trains, *(objective.auxiliaries[n].form for n in copies)]
    if any(form is not DENOISER for form in forms):
        raise ConfigError(
            f"{path}.rank={settings.rank} is for denoisers, and the objective "
            f"'{stage.objective['name']}' trains {objective.trains.called}. Set low_rank.rank=0."
        )
    for name in settings.networks:
        module = student if name == "student" else copies[name]
        assert module is not None
        try:
            _trace(context, module)
        except ConfigError as error:  # its message begins with "low_rank"
            raise ConfigError(f"{context.path}.{error}") from None
    if "student" in settings.networks:
        _check_base(context, path)


def _check_base(context: StageContext, path: str) -> None:
    """Raises `ConfigError` unless the student starts from one network with all of its layers."""
    stage, source = context.settings, context.source
    named = f"{path}.rank={stage.low_rank.rank}"
    if source is None:
        raise ConfigError(
            f"{named} adapts the weights that the student starts from, but {context.path}.init is "
            f"'fresh'. Set init='teacher' or another stage, {_TRAIN_WHOLE}."
        )
    theirs = source.settings.low_rank
    if source.base is not None and theirs != stage.low_rank:
        raise ConfigError(
            f"{path} is {stage.low_rank}, and '{source.name}', whose factors it takes over, has "
            f"{theirs}. Set both alike."
        )
    if source.base is None and (source.stacked or stage.resume):
        what = "many students" if source.stacked else "whole networks"
        raise ConfigError(
            f"{named} needs one base, but '{source.name}' has {what}. Start from a stage of one "
            f"student with init, {_TRAIN_WHOLE}."
        )
    ours = extra_inputs(stage.network)
    if not set(ours) <= set(extra_inputs(source.settings.network)):
        raise ConfigError(
            f"{named} trains no new layers, and the input {', '.join(ours)} is new. Set rank=0, or "
            "an objective without this input."
        )
    if in_full(stage.network) != in_full(source.settings.network):
        raise ConfigError(
            f"{named} adapts the network of '{source.name}', and {context.path}.network is another "
            f"one. Leave network out, {_TRAIN_WHOLE}."
        )


def _trace(context: StageContext, module: nn.Module) -> None:
    """Raises `ConfigError` for targets without layers, or with layers that cannot adapt."""
    s = context.settings
    given = DENOISER.shapes_of(module, context.data.image_shape, s.conditional)
    shapes = variable_shapes(module, *given)["params"]
    adapted_layers(shapes, s.low_rank.targets)

    def call(params: Params, *given: PyTree) -> object:
        key = jax.random.key(0)
        factors = draw_factors(key, params, s.low_rank.rank, s.low_rank.targets)
        with adapting(params, factors):
            return module.apply({"params": params}, *given)

    jax.eval_shape(call, shapes, *given)
