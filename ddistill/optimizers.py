"""Optimisers and learning-rate schedules from settings; all of them are optax's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddistill.errors import ConfigError, check_choice
from ddistill.settings import OptimizerSettings


def _adam(o: OptimizerSettings) -> optax.GradientTransformation:
    return optax.adam(1.0, b1=o.b1, b2=o.b2, eps=o.eps)


def _adamw(o: OptimizerSettings) -> optax.GradientTransformation:
    return optax.adamw(1.0, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)


def _radam(o: OptimizerSettings) -> optax.GradientTransformation:
    return optax.radam(1.0, b1=o.b1, b2=o.b2, eps=o.eps)


def _sgd(o: OptimizerSettings) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(o.weight_decay),
        optax.sgd(1.0, momentum=o.momentum or None, nesterov=False),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "radam": _radam,
    "sgd": _sgd,
}
RATE_SCHEDULES = ("constant", "linear", "cosine", "step")
_WITH_WEIGHT_DECAY = ("adamw", "sgd")
_ZERO_WORKS = ("b1", "b2", "momentum", "final_scale", "clip", "weight_decay")
# (low, high, text of the allowed range); `high` is excluded, `low` unless in `_ZERO_WORKS`.
_RANGES = {
    "learning_rate": (0.0, np.inf, "above 0 and finite"),
    "eps": (0.0, np.inf, "above 0 and finite"),
    "decay": (0.0, np.inf, "above 0 and finite"),
    "b1": (0.0, 1.0, "in [0, 1)"),
    "b2": (0.0, 1.0, "in [0, 1)"),
    "momentum": (0.0, 1.0, "in [0, 1)"),
    "final_scale": (0.0, np.inf, "0 or above and finite"),
    "clip": (0.0, np.inf, "0 (off) or above and finite"),
    "weight_decay": (0.0, np.inf, "0 (off) or above and finite"),
}


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
    _check_ranges(o, path)
    if not 0 <= o.warmup <= steps:
        raise ConfigError(
            f"{path}.warmup={o.warmup} is not between 0 and the stage's {steps} steps."
        )
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


def _check_ranges(o: OptimizerSettings, path: str) -> None:
    """Raises `ConfigError` for a number outside its range, and for infinities and NaN."""
    for key, (low, high, allowed) in _RANGES.items():
        value = getattr(o, key)
        inside = low <= value < high if key in _ZERO_WORKS else low < value < high
        if not inside:
            raise ConfigError(f"{path}.{key}={value} must be {allowed}.")


def learning_rates(o: OptimizerSettings, steps: int) -> np.ndarray:
    """The learning rate of every step, `[steps]`.

    The rate is an argument of the compiled step, so that stages of other lengths and other rates
    run the same program.
    """
    rates = jax.vmap(learning_rate(o, steps))(jnp.arange(steps))
    return np.broadcast_to(np.asarray(rates, np.float32), (steps,))


def update_rule(o: OptimizerSettings) -> tuple[str | float, ...]:
    """The settings that `make_optimizer` reads; optimisers with equal ones are interchangeable."""
    return (o.name, o.clip, o.weight_decay, o.b1, o.b2, o.eps, o.momentum)


# The settings that each optimiser and each learning-rate schedule reads.
_READ_BY_RULE: dict[str, tuple[str, ...]] = {
    "adam": ("b1", "b2", "eps"),
    "adamw": ("b1", "b2", "eps", "weight_decay"),
    "radam": ("b1", "b2", "eps"),
    "sgd": ("momentum", "weight_decay"),
}
_READ_BY_SCHEDULE: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("final_scale",),
    "cosine": ("final_scale",),
    "step": ("milestones", "decay"),
}


def settings_used(o: OptimizerSettings) -> dict[str, object]:
    """The settings that the optimiser and its learning-rate schedule read, by name."""
    always = ("name", "learning_rate", "schedule", "warmup", "clip")
    read = (*always, *_READ_BY_RULE[o.name], *_READ_BY_SCHEDULE[o.schedule])
    return {name: getattr(o, name) for name in read}


def make_optimizer(o: OptimizerSettings) -> optax.GradientTransformation:
    """Builds the optimiser, at a learning rate of 1; clipping comes first.

    The updates of every optimiser here are linear in the rate; the train step multiplies by it.
    """
    core = OPTIMIZERS[o.name](o)
    return optax.chain(optax.clip_by_global_norm(o.clip), core) if o.clip else core
