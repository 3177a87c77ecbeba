"""Optimisers and learning-rate schedules from settings; all of them are optax's."""

from collections.abc import Callable

import optax

from ddistill.errors import ConfigError, check_choice
from ddistill.settings import OptimizerSettings


def _adam(o: OptimizerSettings, rate) -> optax.GradientTransformation:
    return optax.adam(rate, b1=o.b1, b2=o.b2, eps=o.eps)


def _adamw(o: OptimizerSettings, rate) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)


def _radam(o: OptimizerSettings, rate) -> optax.GradientTransformation:
    return optax.radam(rate, b1=o.b1, b2=o.b2, eps=o.eps)


def _sgd(o: OptimizerSettings, rate) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(o.weight_decay),
        optax.sgd(rate, momentum=o.momentum or None, nesterov=False),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "radam": _radam,
    "sgd": _sgd,
}
RATE_SCHEDULES = ("constant", "linear", "cosine", "step")
_WITH_WEIGHT_DECAY = ("adamw", "sgd")


def learning_rate(o: OptimizerSettings, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    Linear warm-up from 0 over `o.warmup` steps, then constant, linear or cosine to
    `final_scale * learning_rate` at `steps`, or a factor `decay` at each milestone.
    """
    peak, rest = o.learning_rate, max(1, steps - o.warmup)
    if o.schedule == "linear":
        main = optax.linear_schedule(peak, peak * o.final_scale, rest)
    elif o.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=o.final_scale)
    elif o.schedule == "step":
        boundaries = {round(m * steps) - o.warmup: o.decay for m in o.milestones}
        main = optax.piecewise_constant_schedule(peak, boundaries)
    else:
        main = optax.constant_schedule(peak)
    if not o.warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, o.warmup), main], [o.warmup])


def check_optimizer(o: OptimizerSettings, steps: int, path: str = "optimizer") -> None:
    """Raises `ConfigError` for names and values that cannot work."""
    check_choice(f"{path}.name", o.name, OPTIMIZERS)
    check_choice(f"{path}.schedule", o.schedule, RATE_SCHEDULES)
    if not o.learning_rate > 0:
        raise ConfigError(f"{path}.learning_rate={o.learning_rate} must be above 0.")
    if not 0 <= o.warmup <= steps:
        raise ConfigError(
            f"{path}.warmup={o.warmup} is not between 0 and the stage's {steps} steps."
        )
    if o.clip < 0:
        raise ConfigError(f"{path}.clip={o.clip} must be 0 (off) or above.")
    if o.weight_decay and o.name not in _WITH_WEIGHT_DECAY:
        raise ConfigError(
            f"{path}.weight_decay={o.weight_decay} has no effect on '{o.name}'; "
            f"use one of {', '.join(_WITH_WEIGHT_DECAY)} or set it to 0."
        )
    if o.schedule == "step" and not all(o.warmup < m * steps < steps for m in o.milestones):
        raise ConfigError(
            f"{path}.milestones={o.milestones} are fractions of the stage, each after the warm-up "
            "and below 1."
        )


def make_optimizer(o: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser of a stage of `steps` steps; clipping comes first.

    Raises:
      ConfigError: see `check_optimizer`.
    """
    check_optimizer(o, steps)
    core = OPTIMIZERS[o.name](o, learning_rate(o, steps))
    return optax.chain(optax.clip_by_global_norm(o.clip), core) if o.clip else core
