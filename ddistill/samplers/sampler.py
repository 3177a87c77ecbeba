"""`Sampler`: an update rule, the facts that callers need about it, and how it is run."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.diffusion import Prediction
from ddistill.samplers.loops import Callback, Program, Rule, Update, run_loop
from ddistill.schedules import Schedule


def one_per_step(steps: int) -> int:
    """Denoiser calls of a sampler that calls the denoiser once per step."""
    return steps


@dataclass(frozen=True)
class Sampler:
    """A sampling algorithm, callable on a denoiser, a schedule and noise.

    Attributes:
      name: its name in settings and results: letters, digits and underscores.
      label: its name in reports and figures.
      step: the update rule of one step, see `ddistill.samplers.algorithms`. Its keyword-only
        arguments have defaults and are options that callers of the sampler can set.
      last: the rule of the last step, with the arguments of `step`; None for `step` itself.
      first: the same of the first step, which is `step`'s where there is only one.
      deterministic: whether the noise alone determines the images if all options have their
        defaults. The rule then receives no key.
      evaluations: N -> denoiser calls per image in N steps.
      rows: N -> the rows of a student's N levels that it visits; None for samplers of any rows.
        Networks that are trained for such a sampler have no other, and it serves no others.
      multistep: whether `step` takes a `Previous` as its sixth argument. At the first step,
        `previous.level` is the current level and `previous.x0` is zero.
      single_step_deterministic: whether a sampler that is not deterministic draws no noise if it
        takes a single step.
      clip_predictions: whether `clip` bounds every prediction of the denoiser. False bounds the
        final images only.
    """

    name: str
    label: str
    step: Update
    last: Update | None = None
    first: Update | None = None
    deterministic: bool = True
    evaluations: Callable[[int], int] = one_per_step
    rows: Callable[[int], Sequence[int]] | None = None
    multistep: bool = False
    single_step_deterministic: bool = False
    clip_predictions: bool = True

    def __call__(
        self,
        denoiser: Callable[..., Prediction],
        schedule: Schedule,
        noise: Float[Array, "B ..."],
        key: Array | None = None,
        *,
        cond: Array | None = None,
        clip: float | None = None,
        trajectory: bool = False,
        loop: str = "auto",
        callback: Callback | None = None,
        **options: float,
    ) -> Any:
        """Generates images from noise.

        Another schedule, another batch or other weights do not compile again, as long as shapes
        are equal.

        Args:
          denoiser: `(z, level, cond) -> Prediction`; a pytree such as `Denoiser`, or a plain
            function, which compiles anew for every function object.
          schedule: the levels to visit, `[N+1]`, from `subsequence`. Sampling starts at index N
            and ends at index 0.
          noise: `[B, H, W, C]` standard normal; z starts at noise * max(1, sigma_N).
          key: random key; required if `draws_noise(N)`, or if an option makes the sampler draw
            noise (`eta` of `ddim`).
          cond: `[B]` class ids, or None.
          clip: bound on |x0| of every prediction, with eps derived anew; None for no bound. See
            `clip_predictions`.
          trajectory: whether to return the states of all levels too.
          loop: "dispatch" (one jitted step after another), "scan" (one program with a loop),
            "unroll" (one program without a loop), or "auto": dispatch on CPU, where XLA runs
            convolutions in a loop body an order of magnitude slower, and scan elsewhere.
          callback: called as `callback(i, z, level, prediction)` once per step, in order: `i` from
            0 to N - 1, `z` at `level`, and the prediction (of the rule) that leads to the next
            level. "scan" and "unroll" call it through `jax.debug.callback`, which needs a single
            device, and compile anew for every function object.
          **options: options of the update rule.

        Returns:
          Images `[B, H, W, C]`; with `trajectory` also the states `[N+1, B, H, W, C]`, the first
          the starting noise, the last the images.

        Raises:
          ConfigError: `loop` is unknown.
          TypeError: the update rule has no such option.
          ValueError: the sampler has `rows`, and the schedule is not made of them; noise has to be
            drawn and `key` is None; or there is a callback, the noise is
            on several devices and the loop is not "dispatch".
        """
        changed = self._changed(options)
        if self.rows is not None and schedule.num_steps != len(self.rows(2)) - 1:
            raise ValueError(
                f"{self.name} visits the rows {tuple(self.rows(8))} of a student's levels (of 0 to "
                f"8), and got a schedule of {schedule.num_steps} steps."
            )
        if self.deterministic and not changed:
            key = None
        elif key is None and not self.deterministic and not self.draws_noise(schedule.num_steps):
            key = jax.random.key(0)  # the weight of this noise is 0
        bound = None if clip is None else float(clip)
        rule = Rule(
            self.step,
            changed,
            clip=bound if self.clip_predictions else None,
            multistep=self.multistep,
            reports=callback is not None,
        )
        last = rule if self.last is None else replace(rule, step=self.last)
        first = rule if self.first is None else replace(rule, step=self.first)
        program = Program(rule, last, first, trajectory, callback)
        made = run_loop(program, (denoiser, cond), (schedule, noise, key), loop)
        if bound is not None and not self.clip_predictions:
            made = _clip_images(*made, bound)
        return made if trajectory else made[0]

    def draws_noise(self, steps: int) -> bool:
        """Whether the sampler, with default options, draws noise in `steps` steps."""
        return not (self.deterministic or (self.single_step_deterministic and steps == 1))

    def steps_for(self, evaluations: int) -> int | None:
        """The number of steps that takes exactly `evaluations` denoiser calls, or None."""
        counts = range(1, evaluations + 2)
        return next((n for n in counts if self.evaluations(n) == evaluations), None)

    def _changed(self, options: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
        """The options that differ from the defaults of the update rule, sorted by name.

        Raises:
          TypeError: the update rule has no such option.
        """
        known = {
            p.name: p.default
            for p in inspect.signature(self.step).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        for name in options:
            if name not in known:
                has = ", ".join(known) or "none"
                raise TypeError(f"{self.name}() has no option '{name}'. Options: {has}.")
        return tuple(sorted((n, float(v)) for n, v in options.items() if v != known[n]))


def _clip_images(images: Array, states: Array | None, bound: float) -> tuple[Array, Array | None]:
    """Bounds the final images and leaves the earlier states as they are."""
    images = jnp.clip(images, -bound, bound)
    return images, None if states is None else states.at[-1].set(images)
