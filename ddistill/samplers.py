"""Samplers: a denoiser and a grid of levels in, images out.

Each sampler is its paper's update rule, a function of one step; the loop around it is shared. On
accelerators the whole loop is one `lax.scan` in one jit. On CPU one jitted step is dispatched at a
time, since XLA CPU runs convolutions in a loop body an order of magnitude slower. Steps take their
levels as arguments and the denoiser as a pytree, so that another grid, another batch or other
parameters never compile again.

    images = ddim(denoiser, subsequence(schedule, grid), noise, clip=1.0)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from ddistill.diffusion import (
    Prediction,
    add_noise,
    clip_x0,
    ddim_step,
    from_x0,
    multistep_x0,
    posterior_step,
)
from ddistill.errors import check_choice
from ddistill.runtime.compilation import compiler_options, is_wide
from ddistill.schedules import Level, Schedule

LOOPS = ("auto", "scan", "dispatch", "unroll")
STATIC = ("rule", "last", "clip", "options", "trajectory")

# Heun's correction weighs the second denoiser call by half the ratio of the noise levels before and
# after the step. EDM's own grids stay below this ratio; the first step of a cosine table reaches
# 1e4, where the trapezoid resolves nothing and multiplies the network's error.
HEUN_MAX_RATIO = 100.0


@struct.dataclass
class Step:
    """What a rule is told of its step.

    Attributes:
      before: the level of the previous step (`here` in the first one).
      here: the level z is at.
      there: the level it goes to.
      key: this step's own random key; None for deterministic samplers.
    """

    before: Level
    here: Level
    there: Level
    key: Any


Denoise = Callable[[Array, Level], Prediction]
Rule = Callable[..., tuple[Array, Any]]


# -------------------------------------------------------------------------------------- rules
# A rule is (denoise, z, memory, step) -> (z of the next level, memory for the next step).


def _ddim(denoise: Denoise, z: Array, memory: Any, step: Step, eta: float = 0.0):
    prediction = denoise(z, step.here)
    noise = jax.random.normal(step.key, z.shape, z.dtype) if eta else None
    return ddim_step(prediction, z, step.here, step.there, eta, noise), memory


def _ddpm(denoise: Denoise, z: Array, memory: Any, step: Step):
    noise = jax.random.normal(step.key, z.shape, z.dtype)
    return posterior_step(denoise(z, step.here), z, step.here, step.there, noise), memory


def _renoise(denoise: Denoise, z: Array, memory: Any, step: Step):
    noise = jax.random.normal(step.key, z.shape, z.dtype)
    return add_noise(denoise(z, step.here).x0, noise, step.there), memory


def _heun(denoise: Denoise, z: Array, memory: Any, step: Step):
    # d(z / alpha) / d(sigma / alpha) = eps; the trapezoid over both eps is, seen from z, a DDIM
    # step with x0 = x_1 + (sigma_1 / sigma_2) / 2 (x_2 - x_1), where alpha_1 ~ 0 does no harm.
    here, there = step.here, step.there
    first = denoise(z, here)
    second = denoise(ddim_step(first, z, here, there), there)
    ratio = here.sigma * there.alpha / (here.alpha * there.sigma)
    weight = jnp.where(ratio <= HEUN_MAX_RATIO, ratio / 2.0, 0.0)
    x0 = first.x0 + weight * (second.x0 - first.x0)
    return ddim_step(from_x0(x0, z, here), z, here, there), memory


def _dpm_solver_pp(denoise: Denoise, z: Array, memory: Array, step: Step):
    x0 = denoise(z, step.here).x0
    extrapolated = multistep_x0(x0, memory, step.before, step.here, step.there)
    return ddim_step(from_x0(extrapolated, z, step.here), z, step.here, step.there), x0


# ----------------------------------------------------------------------------------- samplers


def ddim(
    denoiser: Any,
    schedule: Schedule,
    noise: Float[Array, "B ..."],
    key: Any = None,
    *,
    cond: Any = None,
    eta: float = 0.0,
    clip: float | None = None,
    trajectory: bool = False,
    loop: str = "auto",
) -> Any:
    """DDIM (arXiv 2010.02502): N steps, N denoiser calls; first order.

    Args:
      denoiser: `(z, level, cond) -> Prediction`; a pytree such as `Denoiser`, or a plain function,
        which compiles anew for every function object.
      schedule: the levels to visit, `[N+1]`, from `subsequence`. Sampling goes from index N to 0.
      noise: `[B, H, W, C]` standard normal; z starts at noise * max(1, sigma_N).
      key: random key, needed where the sampler draws noise (here with eta > 0).
      cond: `[B]` class ids, or None.
      eta: 0 is deterministic, 1 is `ddpm`.
      clip: bound on |x0| of every prediction, with eps derived anew; None for none.
      trajectory: also return all states.
      loop: "scan" (one program), "dispatch" (one jitted step after another), "unroll" (one
        program without a loop), or "auto": dispatch on CPU, scan elsewhere.

    Returns:
      Images `[B, H, W, C]`; with `trajectory` also `[N+1, B, H, W, C]`, the first the starting
      noise, the last the images.

    Raises:
      ConfigError: an unknown `loop`.
      ValueError: noise is to be drawn and there is no key.
    """
    if eta:
        _need_key(key, f"ddim with eta={eta}")
    run = _Run(denoiser, schedule, noise, key if eta else None, cond, clip, trajectory, loop)
    return _run(run, _ddim, options=(("eta", float(eta)),))


def ddpm(
    denoiser: Any,
    schedule: Schedule,
    noise: Float[Array, "B ..."],
    key: Any = None,
    *,
    cond: Any = None,
    clip: float | None = None,
    trajectory: bool = False,
    loop: str = "auto",
) -> Any:
    """Ancestral sampling (DDPM, arXiv 2006.11239 algorithm 2) with the posterior's variance.

    N denoiser calls. Arguments as in `ddim`; `key` is needed.
    """
    _need_key(key, "ddpm")
    run = _Run(denoiser, schedule, noise, key, cond, clip, trajectory, loop)
    return _run(run, _ddpm)


def heun(
    denoiser: Any,
    schedule: Schedule,
    noise: Float[Array, "B ..."],
    key: Any = None,
    *,
    cond: Any = None,
    clip: float | None = None,
    trajectory: bool = False,
    loop: str = "auto",
) -> Any:
    """EDM's deterministic sampler (arXiv 2206.00364 algorithm 1), over sigma / alpha.

    2 N - 1 denoiser calls, since the last step is Euler's; second order. Arguments as in `ddim`;
    `key` is not used. Where one step lowers the noise by more than `HEUN_MAX_RATIO`, as the first
    one of a cosine table does, that step is Euler's too.
    """
    run = _Run(denoiser, schedule, noise, None, cond, clip, trajectory, loop)
    return _run(run, _heun, last=_ddim)


def dpm_solver_pp(
    denoiser: Any,
    schedule: Schedule,
    noise: Float[Array, "B ..."],
    key: Any = None,
    *,
    cond: Any = None,
    clip: float | None = None,
    trajectory: bool = False,
    loop: str = "auto",
) -> Any:
    """DPM-Solver++(2M) (arXiv 2211.01095 algorithm 2): multistep on x0-predictions, second order.

    N denoiser calls. The first step, and the one into a clean level, are first order. Arguments as
    in `ddim`; `key` is not used.
    """
    run = _Run(denoiser, schedule, noise, None, cond, clip, trajectory, loop)
    return _run(run, _dpm_solver_pp, remembers=True)


def renoise(
    denoiser: Any,
    schedule: Schedule,
    noise: Float[Array, "B ..."],
    key: Any = None,
    *,
    cond: Any = None,
    clip: float | None = None,
    trajectory: bool = False,
    loop: str = "auto",
) -> Any:
    """Image, fresh noise of the next level, better image, ...: how few-step generators are sampled.

    Consistency models' multistep sampling (arXiv 2303.01469 algorithm 1), which DMD2 uses too. N
    denoiser calls; with N = 1 no noise is drawn, and it is `ddim`. Arguments as in `ddim`; `key` is
    needed with N > 1, and `clip` bounds the last image alone, because in training a student goes on
    from its images as they are.
    """
    if schedule.num_steps > 1:
        _need_key(key, "renoise in several steps")
    key = jax.random.key(0) if key is None else key
    run = _Run(denoiser, schedule, noise, key, cond, None, trajectory, loop)
    made = _run(run, _renoise)
    if clip is None:
        return made
    image, *states = made if trajectory else (made,)
    image = jnp.clip(image, -clip, clip)
    return (image, states[0].at[-1].set(image)) if trajectory else image


SAMPLERS: dict[str, Callable[..., Any]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "heun": heun,
    "dpm_solver_pp": dpm_solver_pp,
    "renoise": renoise,
}


def get_sampler(name: str) -> Callable[..., Any]:
    """The sampler of a name.

    Raises:
      ConfigError: an unknown name.
    """
    check_choice("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def nfe(name: str, steps: int) -> int:
    """Denoiser calls per image that a sampler makes in `steps` steps.

    Raises:
      ConfigError: an unknown name.
    """
    check_choice("sampler", name, SAMPLERS)
    return 2 * steps - 1 if name == "heun" else steps


# --------------------------------------------------------------------------------------- loop


@dataclass(frozen=True)
class _Run:
    """A sampler's arguments."""

    denoiser: Any
    schedule: Schedule
    noise: Array
    key: Any
    cond: Any
    clip: float | None
    trajectory: bool
    loop: str


def _run(run: _Run, rule: Rule, last: Rule | None = None, remembers: bool = False, options=()):
    """Applies `rule` from the noisiest level to the clean end, `last` (default `rule`) at the end.

    `remembers`: rules keep an array like z from one step to the next. `options`: their keyword
    arguments, as pairs.
    """
    check_choice("loop", run.loop, LOOPS)
    loop = _default_loop(run.noise) if run.loop == "auto" else run.loop
    # A pytree is an argument of the jitted step; a plain function becomes a static part of one.
    plain = jax.tree_util.all_leaves([run.denoiser])
    denoiser = jax.tree_util.Partial(run.denoiser) if plain else run.denoiser
    z = jnp.asarray(run.noise) * jnp.maximum(1.0, run.schedule.sigma[-1])
    memory = jnp.zeros_like(z) if remembers else None
    walks: dict[str, Any] = {"dispatch": _dispatch, "unroll": _unroll, "scan": _scan}
    result, states = walks[loop](
        denoiser,
        run.cond,
        z,
        memory,
        _steps(run.schedule, run.key),
        rule=rule,
        last=last or rule,
        clip=None if run.clip is None else float(run.clip),
        options=options,
        trajectory=run.trajectory,
    )
    return (result, jnp.concatenate([z[None], states])) if run.trajectory else result


def _need_key(key: Any, what: str) -> None:
    if key is None:
        raise ValueError(f"{what} draws noise and needs a key, for example jax.random.key(0).")


def _default_loop(noise: Any) -> str:
    return "dispatch" if _platform(noise) == "cpu" else "scan"


def _platform(x: Any) -> str:
    """Where an array lies: "cpu", "gpu" or "tpu"; jax's default while tracing."""
    concrete = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return next(iter(x.devices())).platform if concrete else jax.default_backend()


def _steps(schedule: Schedule, key: Any) -> Step:
    """All N steps, stacked: the first goes from index N to N - 1."""
    count = schedule.num_steps
    here = np.arange(count, 0, -1)
    keys = None
    if key is not None:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(np.arange(count))
    before = schedule.at(np.minimum(here + 1, count))
    return Step(before, schedule.at(here), schedule.at(here - 1), keys)


def _advance(denoiser, cond, z, memory, step: Step, rule: Rule, clip, options):
    def denoise(z, level):
        prediction = denoiser(z, level, cond)
        return prediction if clip is None else clip_x0(prediction, z, level, clip)

    return rule(denoise, z, memory, step, **dict(options))


def _jitted_advance(denoiser: Any, cond: Any, z: Array) -> Callable[..., Any]:
    """`_advance` as it is compiled for networks of this width, where `z` lies."""
    traced = (isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((denoiser, cond, z)))
    if any(traced):  # options belong to the outermost program
        return _compiled_advance(None)
    return _compiled_advance((_platform(z), is_wide(denoiser)))


@cache
def _compiled_advance(kind: tuple[str, bool] | None) -> Callable[..., Any]:
    static = ("rule", "clip", "options")
    options = compiler_options(*kind) if kind else None
    return jax.jit(_advance, static_argnames=static, compiler_options=options)


def _dispatch(denoiser, cond, z, memory, steps, *, rule, last, clip, options, trajectory, do=None):
    do = do or _jitted_advance(denoiser, cond, z)
    states = []
    for i in range(count := len(steps.here.alpha)):
        step = jax.tree.map(lambda t, i=i: t[i], steps)
        now = last if i == count - 1 else rule
        z, memory = do(denoiser, cond, z, memory, step, rule=now, clip=clip, options=options)
        states += [z] if trajectory else []
    return z, jnp.stack(states) if trajectory else None


@partial(jax.jit, static_argnames=STATIC)
def _unroll(*args, **static):
    return _dispatch(*args, **static, do=_advance)


@partial(jax.jit, static_argnames=STATIC)
def _scan(denoiser, cond, z, memory, steps, *, rule, last, clip, options, trajectory):
    def body(carry, step, now=rule):
        z, memory = carry
        carry = _advance(denoiser, cond, z, memory, step, now, clip, options)
        return carry, carry[0] if trajectory else None

    if last is rule:
        (z, _), states = jax.lax.scan(body, (z, memory), steps)
        return z, states
    # A last step of another kind stands after the loop, so that it costs its own calls only.
    carry, states = jax.lax.scan(body, (z, memory), jax.tree.map(lambda t: t[:-1], steps))
    (z, _), _ = body(carry, jax.tree.map(lambda t: t[-1], steps), now=last)
    return z, jnp.concatenate([states, z[None]]) if trajectory else None
