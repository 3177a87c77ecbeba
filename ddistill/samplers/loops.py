"""The loop around an update rule, from the noisiest level to the clean end.

On accelerators the whole loop is one `lax.scan` in one jit. On CPU one jitted step is dispatched at
a time, because XLA CPU runs convolutions in a loop body an order of magnitude slower. Levels are
arguments of a step and the denoiser is a pytree, so that another schedule, another batch or other
weights do not compile again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array

from ddistill.diffusion import Prediction, clip_x0
from ddistill.errors import check_choice
from ddistill.networks.extras import EXTRAS
from ddistill.runtime.compilation import compiler_options, is_wide
from ddistill.schedules import Level, Schedule

LOOPS = ("auto", "scan", "dispatch", "unroll")

Denoise = Callable[[Array, Level], Prediction]
# See `ddistill.samplers.algorithms`; multistep rules and options add arguments.
Update = Callable[..., tuple[Array, Prediction]]


# Receives the number of the step from 0, z at `level`, the level, and the prediction for z.
Callback = Callable[[int, Array, Level, Prediction], None]


@struct.dataclass
class Previous:
    """What a multistep rule knows of the step before.

    Attributes:
      level: the level at which that step started, `[]`.
      x0: `[B, H, W, C]`, the images predicted at that level.
    """

    level: Level
    x0: Array


@dataclass(frozen=True)
class Rule:
    """The static part of a step: equal rules share a compiled program.

    Attributes:
      step: the update rule.
      options: its keyword arguments, as pairs.
      clip: bound on |x0| of every prediction, or None.
      multistep: whether `step` takes a `Previous`.
      reports: whether the step returns its prediction, for callbacks.
    """

    step: Update
    options: tuple[tuple[str, float], ...] = ()
    clip: float | None = None
    multistep: bool = False
    reports: bool = False


@struct.dataclass
class Step:
    """The arguments of a step; with a leading axis `[N]`, those of all steps.

    Attributes:
      before: the level of the previous step (`here` at the first step).
      here: the level of z.
      there: the next level.
      key: the random key of this step; None for deterministic samplers.
    """

    before: Level
    here: Level
    there: Level
    key: Array | None


Network = tuple[Callable[..., Prediction], Array | None]  # denoiser and condition
State = tuple[Array, Array | None]  # z, and the previous x0 of multistep rules
Loop = Callable[..., tuple[Array, Array | None]]  # images, and all states or None


@dataclass(frozen=True)
class Program:
    """The static part of a loop.

    Attributes:
      rule: of all steps but the first and the last.
      last: the rule of the last step, which is the only one if there is one.
      first: the rule of the first step of several.
      trajectory: whether to return all states.
      callback: see `ddistill.samplers.sampler.Sampler.__call__`.
    """

    rule: Rule
    last: Rule
    first: Rule
    trajectory: bool = False
    callback: Callback | None = None


def run_loop(
    program: Program,
    network: Network,
    start: tuple[Schedule, Array, Array | None],
    loop: str = "auto",
) -> tuple[Array, Array | None]:
    """Takes N steps.

    Args:
      program: what to do.
      network: denoiser `(z, level, cond) -> Prediction`, and cond `[B]` or None.
      start: schedule `[N+1]`, noise `[B, H, W, C]`, and key or None.
      loop: one of `LOOPS`.

    Returns:
      Images, and with `trajectory` the states `[N+1, B, H, W, C]`, else None.

    Raises:
      ConfigError: `loop` is unknown.
      ValueError: a callback would be called from a program on several devices.
    """
    check_choice("loop", loop, LOOPS)
    (denoiser, cond), (schedule, noise, key) = network, start
    # A pytree is an argument of the jitted step; a plain function becomes a static part of one.
    if jax.tree_util.all_leaves([denoiser]):
        denoiser = jax.tree_util.Partial(denoiser)
    z = jnp.asarray(noise) * jnp.maximum(1.0, schedule.sigma[-1])
    loop = default_loop(noise) if loop == "auto" else loop
    if program.callback is not None and loop != "dispatch":
        _check_one_device(z, loop)
    loops: dict[str, Loop] = {"dispatch": _dispatch, "unroll": _unroll, "scan": _scan}
    images, states = loops[loop](
        (denoiser, cond),
        (z, jnp.zeros_like(z) if program.rule.multistep else None),
        _steps(schedule, key),
        program,
    )
    if program.callback is not None and not _is_traced(images):
        jax.effects_barrier()  # all calls of the callback are over when the sampler returns
    return images, None if states is None else jnp.concatenate([z[None], states])


def default_loop(noise: Array) -> str:
    """The loop that "auto" stands for where `noise` is stored."""
    return "dispatch" if _platform(noise) == "cpu" else "scan"


def _platform(x: Array) -> str:
    """Where an array is stored: "cpu", "gpu" or "tpu"; JAX's default while tracing."""
    concrete = isinstance(x, jax.Array) and not _is_traced(x)
    return next(iter(x.devices())).platform if concrete else jax.default_backend()


def _is_traced(*trees: object) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees))


def _check_one_device(z: Array, loop: str) -> None:
    count = 1 if _is_traced(z) else len(z.devices())
    if count > 1:
        raise ValueError(
            f"A sampler's callback with loop='{loop}' needs noise on one device; this noise is on "
            f"{count}. Use loop='dispatch'."
        )


def _steps(schedule: Schedule, key: Array | None) -> Step:
    """All N steps, stacked: the first goes from index N to N - 1."""
    count = schedule.num_steps
    here = np.arange(count, 0, -1)
    keys = None
    if key is not None:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(count))
    before = schedule.at(np.minimum(here + 1, count))
    return Step(before, schedule.at(here), schedule.at(here - 1), keys)


# ---------------------------------------------------------------------------------------- step


def _advance(
    network: Network, state: State, step: Step, rule: Rule
) -> tuple[State, Prediction | None]:
    (denoiser, cond), (z, x0) = network, state
    by_step = {
        name: value(step.here, step.there)
        for name in getattr(denoiser, "extras", ())
        if (value := EXTRAS[name].of_step)
    }
    denoiser = denoiser.given(**by_step) if by_step else denoiser  # type: ignore[attr-defined]

    def denoise(z: Array, level: Level) -> Prediction:
        prediction = denoiser(z, level, cond)
        return prediction if rule.clip is None else clip_x0(prediction, z, level, rule.clip)

    previous = () if x0 is None else (Previous(step.before, x0),)
    z, prediction = rule.step(
        denoise, z, step.here, step.there, step.key, *previous, **dict(rule.options)
    )
    memory = prediction.x0 if rule.multistep else None
    return (z, memory), prediction if rule.reports else None


Advance = Callable[..., tuple[State, Prediction | None]]


def jitted_advance(network: Network, z: Array) -> Advance:
    """`_advance` as it is compiled for networks of this width on the device of `z`."""
    if _is_traced(network, z):  # compiler options belong to the outermost program
        return _compiled_advance(None)
    return _compiled_advance((_platform(z), is_wide(network[0])))


@cache
def _compiled_advance(kind: tuple[str, bool] | None) -> Advance:
    options = compiler_options(*kind) if kind else None
    return jax.jit(_advance, static_argnames=("rule",), compiler_options=options)


def _report(
    callback: Callback | None, i: Array | int, z: Array, step: Step, prediction: Prediction | None
) -> None:
    """Calls the callback, from within a program if the values are traced."""
    if callback is None or prediction is None:
        return
    if not _is_traced(i, z, prediction):
        callback(int(i), z, step.here, prediction)
        return

    def on_host(i, z, level, prediction):
        callback(int(i), z, level, prediction)

    jax.debug.callback(on_host, i, z, step.here, prediction, ordered=True)


# --------------------------------------------------------------------------------------- loops


def _dispatch(
    network: Network, state: State, steps: Step, program: Program
) -> tuple[Array, Array | None]:
    return _python_loop(jitted_advance(network, state[0]), network, state, steps, program)


@partial(jax.jit, static_argnames=("program",))
def _unroll(
    network: Network, state: State, steps: Step, program: Program
) -> tuple[Array, Array | None]:
    return _python_loop(_advance, network, state, steps, program)


def _python_loop(
    advance: Advance, network: Network, state: State, steps: Step, program: Program
) -> tuple[Array, Array | None]:
    states = []
    for i in range(count := len(steps.here.alpha)):
        step = jax.tree.map(lambda t, i=i: t[i], steps)
        z, rule = state[0], program.first if i == 0 else program.rule
        if i == count - 1:
            rule = program.last
        state, prediction = advance(network, state, step, rule=rule)
        _report(program.callback, i, z, step, prediction)
        states += [state[0]] if program.trajectory else []
    return state[0], jnp.stack(states) if program.trajectory else None


@partial(jax.jit, static_argnames=("program",))
def _scan(
    network: Network, state: State, steps: Step, program: Program
) -> tuple[Array, Array | None]:
    def body(state: State, numbered: tuple[Array, Step], rule: Rule = program.rule):
        i, step = numbered
        after, prediction = _advance(network, state, step, rule)
        _report(program.callback, i, state[0], step, prediction)
        return after, after[0] if program.trajectory else None

    count = len(steps.here.alpha)
    numbered = (jnp.arange(count), steps)
    # A first or last step of another kind stands outside of the loop, and costs its own calls only.
    begin = int(program.first != program.rule and count > 1)
    end = count - int(program.last != program.rule)
    parts = []
    if begin:
        state, one = body(state, jax.tree.map(lambda t: t[0], numbered), rule=program.first)
        parts.append(jax.tree.map(lambda x: x[None], one))
    state, states = jax.lax.scan(body, state, jax.tree.map(lambda t: t[begin:end], numbered))
    parts.append(states)
    if end < count:
        state, one = body(state, jax.tree.map(lambda t: t[-1], numbered), rule=program.last)
        parts.append(jax.tree.map(lambda x: x[None], one))
    return state[0], jnp.concatenate(parts) if program.trajectory else None
