"""Consistency models: a student whose image is the same at every level of a path.

Sources: arXiv 2303.01469 (CD, CT), 2310.14189 (iCT: the doubling curriculum, pseudo-Huber
distances, weights 1 / step), 2310.04378 (LCM: the target lies several levels lower) and 2406.14548
(ECT: the target's level as a function of the level and of the training's progress).

The student's image at a noisy level is regressed onto the image of a constant copy of itself, or of
its moving average, at a cleaner level of the same path. Consistency distillation (CD) walks there
by one step of a teacher, consistency training (CT) by the example's own noise. At the clean end the
noisy image is its own image; that boundary is the only place where data enter, and it ties networks
that predict eps, v or EDM's F. A network that predicts x0 is tied nowhere and is refused.

Levels are the rows of the student's grid, N steps: the papers' "N points" are N - 1 steps there.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddistill.diffusion import (
    Prediction,
    ddim_step,
    error_weight,
    expand,
    from_x0,
    trapezoid_x0,
)
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import check_not_negative, check_unused
from ddistill.objectives.distances import HUBER, PredictionDistance
from ddistill.objectives.distillation import Distillation
from ddistill.objectives.guided import GuidedDistillation
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import (
    DENOISER,
    Auxiliary,
    Networks,
    Requirements,
    StageFacts,
)
from ddistill.objectives.sampling import LAWS, Law, draw_level
from ddistill.objectives.states import State, noised
from ddistill.schedules import Schedule
from ddistill.typing import Images, Labels, PerExample, Scalar

DISTANCES = ("l1", "l2", "pseudo_huber", "pixel_huber")
STEP_WEIGHTS = ("uniform", "inverse_step", "edm")
CURRICULA = ("none", "doubling", "ect")
SOLVERS = ("ddim", "heun")


@dataclass(frozen=True)
class Consistency(Distillation):
    """The members that CD and CT share.

    Attributes:
      consistency_weight: weight of the distance of images; 0 with `classifier_weight` above 0
        compares in a classifier's features alone.
      distance: of images: "l1" and "l2" are means over pixels, "pseudo_huber" is
        sqrt(|d|^2 + c^2) - c over the number n of values with c = huber sqrt(n), and "pixel_huber"
        is the mean over pixels of sqrt(d^2 + huber^2) - huber (LCM, with 0.001).
      huber: the constant of the last two.
      step_weight: "uniform"; "inverse_step", 1 / (s - s') with s = sigma / alpha at the two levels
        (iCT, ECT); "edm", the weight of EDM at the noisy level (ECT on ImageNet).
      target_ema: rate of the moving average that the target is taken from, the share that remains
        in a step. 0 is the student itself, as a constant. The released code has 0 for CIFAR-10,
        0.95 for CD on ImageNet-64 and for LCM.
      law: how noisy levels are drawn: "uniform" over the levels, or "lognormal" in sigma / alpha.
      log_mean, log_std: of the logarithm of sigma / alpha, for "lognormal" (iCT, ECT).
      level_skip: levels from the noisy level down to the target's, which is at least level 0 (LCM).
      curriculum: "none"; "doubling", the levels are read in `first_intervals` intervals, a number
        that doubles in equal parts of the training until it is the number of levels (iCT); "ect",
        the target is at s' = s (1 - (1 + 8 sigmoid(-s)) / q^(a+1)) or the next level below it, in
        part a = 0, 1, .. of `ect_stages` equal parts of the training. With q = 2, a = 0, levels
        below s = log 7 are compared with the data.
      first_intervals: intervals of "doubling" at the start.
      ect_q, ect_stages: q and the number of parts of "ect".
    """

    consistency_weight: float = 1.0
    distance: str = "l2"
    huber: float = HUBER
    step_weight: str = "uniform"
    target_ema: float = 0.0
    law: str = "uniform"
    log_mean: float = -1.1
    log_std: float = 2.0
    level_skip: int = 1
    curriculum: str = "none"
    first_intervals: int = 10
    ect_q: float = 2.0
    ect_stages: int = 8

    def __post_init__(self):
        check_choice("objective.distance", self.distance, DISTANCES)
        check_choice("objective.step_weight", self.step_weight, STEP_WEIGHTS)
        check_choice("objective.law", self.law, LAWS)
        check_choice("objective.curriculum", self.curriculum, CURRICULA)
        check_not_negative(self, "huber")
        if not 0.0 <= self.target_ema < 1.0:
            raise ConfigError(
                f"objective.target_ema={self.target_ema} must be in [0, 1); 0 is no average."
            )
        for name in ("level_skip", "first_intervals", "ect_stages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"objective.{name}={getattr(self, name)} must be 1 or more.")
        if not self.ect_q > 1.0:
            raise ConfigError(f"objective.ect_q={self.ect_q} must be above 1.")
        if not self.log_std > 0:
            raise ConfigError(f"objective.log_std={self.log_std} must be above 0.")
        if self.law != "lognormal":
            check_unused(self, f"objective.law is {self.law!r}", "log_mean", "log_std")
        curriculum = f"objective.curriculum is {self.curriculum!r}"
        if self.curriculum != "none":
            check_unused(self, curriculum, "level_skip")
        if self.curriculum != "doubling":
            check_unused(self, curriculum, "first_intervals")
        if self.curriculum != "ect":
            check_unused(self, curriculum, "ect_q", "ect_stages")
        if "huber" not in self.distance:
            check_unused(self, f"objective.distance is {self.distance!r}", "huber")
        super().__post_init__()

    def prepare(self, facts: StageFacts) -> Self:
        """Refuses more levels between student and target than the grid has, and `x0`-prediction.

        Nothing ties the image of a student that predicts x0 to the data.
        """
        steps = facts.num_steps
        for name in ("level_skip", "first_intervals"):
            value = getattr(self, name)
            if value > steps and (name == "level_skip" or self.curriculum == "doubling"):
                raise ConfigError(
                    f"objective.{name}={value}, but the student's grid has {steps} levels. "
                    f"Allowed: 1 to {steps}."
                )
        if facts.networks.student_prediction == "x0":
            raise ConfigError(
                "prediction='x0': the image of a consistency model at the clean end is the noisy "
                "image itself, which a network that predicts x0 does not see; it would learn any "
                "constant. Allowed: eps, v, edm, flow."
            )
        return super().prepare(facts)

    @property
    def requires(self) -> Requirements:
        """All levels: the target is the student's own prediction at another one."""
        reason = "the target of a consistency model is its own image at a lower level"
        weight = "objective.step_weight='inverse_step' is 0 there, where samples begin"
        return dataclasses.replace(
            super().requires,
            all_levels=reason,
            last_image=weight if self.step_weight == "inverse_step" else "",
        )

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The network that the target is taken from."""
        return {"target": Auxiliary(DENOISER, start="average", rate=self.target_ema)}

    @property
    def sampler(self) -> str:
        """Several steps noise the image again (arXiv 2303.01469 algorithm 1)."""
        return "renoise"

    @property
    def any_steps(self) -> bool:
        """The image is predicted at every level."""
        return True

    @property
    def level_law(self) -> Law:
        """As set."""
        return Law(self.law, self.log_mean, self.log_std)

    def distances(self) -> Mapping[str, tuple[str, PredictionDistance]]:
        """The distance of the images at the two levels."""
        distance = PredictionDistance("x0", norm=self.distance, huber=self.huber)
        return {"consistency": ("target", distance)}

    def state(self, networks: Networks, batch: Batch, tables: LevelTables) -> State:
        """The noisy images of a batch, at levels of the curriculum."""
        drawn = draw_level(batch.key("level"), tables, self.level_law)
        index, below = self.pair_of_levels(drawn, tables)
        state = noised(batch, tables, index, self.condition(batch))
        state = self.mixed(state, networks, batch, tables)
        if self.replay_batches:  # whose states are at levels of their own
            below = self.pair_of_levels(state.index, tables)[1]
        return dataclasses.replace(state, below=below)

    def pair_of_levels(
        self, index: Int[Array, " B"], tables: LevelTables
    ) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """The levels of student and target, `[B]` rows of the grid each, for drawn levels."""
        if self.curriculum == "doubling":
            return doubling_levels(index, tables, self.first_intervals)
        if self.curriculum == "ect":
            return index, ect_level(index, tables, self.ect_q, self.ect_stages)
        return index, jnp.maximum(index - self.level_skip, 0)

    def example_weights(self, state: State, tables: LevelTables) -> PerExample | None:
        """The weight of the two levels."""
        if self.step_weight == "uniform":
            return None
        if self.step_weight == "edm":
            return error_weight("edm", state.level)
        below = tables.student.at(_below(state))
        here = state.level
        return 1.0 / (here.sigma / here.alpha - below.sigma / below.alpha)

    def walked(self, networks: Networks, state: State, tables: LevelTables) -> Images:
        """The noisy images `[B, H, W, C]` at the levels of the target."""
        raise TypeError(f"{type(self).__name__} does not define its walk.")

    def target(self, networks: Networks, state: State, tables: LevelTables) -> Prediction:
        """The image of the target network at the cleaner level; the noisy image itself at 0."""
        z = self.walked(networks, state, tables)
        key = {} if state.dropout_key is None else {"key": state.dropout_key}
        # Networks are not defined at level 0, where EDM's time is the logarithm of 0.
        level = tables.student.at(jnp.maximum(_below(state), 1))
        image = networks["target"](z, level, state.cond, **key).x0
        clean = z / expand(tables.student.at(0).alpha, z)
        image = jnp.where(expand(_below(state) == 0, z), clean, image)
        return from_x0(image, state.z, state.level)


@dataclass(frozen=True)
class CD(GuidedDistillation, Consistency):
    """CD, LCM (arXiv 2303.01469, 2310.04378): equal images along one step of the teacher.

    Attributes:
      solver: "ddim" (Euler's method, one call of the teacher) or "heun" (two).
    """

    teacher_reason: ClassVar[str] = "its target lies one teacher step below the noisy image"

    solver: str = "heun"

    def __post_init__(self):
        check_choice("objective.solver", self.solver, SOLVERS)
        super().__post_init__()

    def teacher_calls(self, each: int = 1) -> int:
        """One step of one or two calls."""
        return each * (2 if self.solver == "heun" else 1) + self.rollout_calls(each)

    def walked(self, networks: Networks, state: State, tables: LevelTables) -> Images:
        """The end of the teacher's step; the step to a clean level is DDIM's."""
        teacher, here = networks["teacher"], state.teacher_level
        there = tables.teacher.at(tables.grid[_below(state)])
        first = teacher(state.z, here, state.cond)
        z = ddim_step(first, state.z, here, there)
        if self.solver == "ddim":
            return z
        seen = tables.teacher.at(tables.grid[jnp.maximum(_below(state), 1)])
        second = teacher(z, seen, state.cond)
        x0 = trapezoid_x0(first.x0, second.x0, here, there)
        return ddim_step(from_x0(x0, state.z, here), state.z, here, there)


@dataclass(frozen=True)
class CT(Consistency):
    """CT, iCT, ECT (arXiv 2303.01469, 2310.14189, 2406.14548): equal images without a teacher."""

    def __post_init__(self):
        super().__post_init__()
        if self.teacher_states or self.student_states:
            raise ConfigError(
                "objective: images of rollouts (teacher_states, student_states) have no noise of "
                "their own, which 'ct' walks along. Set both to 0, or use 'cd'."
            )

    def walked(self, networks: Networks, state: State, tables: LevelTables) -> Images:
        """The same image with the same noise at the cleaner level."""
        del networks
        return ddim_step(state.data, state.z, state.level, tables.student.at(_below(state)))


def _below(state: State) -> Labels:
    """The rows of the levels of the target."""
    assert state.below is not None, "states of consistency models have it"
    return state.below


def doubling_levels(
    index: Int[Array, " B"], tables: LevelTables, first: int
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Neighbours of iCT's coarse grid (arXiv 2310.14189 eq. 11) for levels of the full grid.

    The coarse grid has n = min(first 2^k, N) intervals of nearly equal numbers of levels in part
    k = 0, 1, .. of log2(N / first) + 1 equal parts of the training.

    Args:
      index: `[B]` levels in 1 .. N.
      tables: the levels; `tables.progress` says how far the training is.
      first: intervals at the start.

    Returns:
      (the upper end of the interval that holds `index`, its lower end), `[B]` each.
    """
    count = tables.count
    parts = jnp.floor(jnp.log2(count / first) + 1.0)
    doubled = first * 2.0 ** jnp.floor(tables.progress * parts)
    n = jnp.minimum(doubled.astype(jnp.int32), count)
    n = jnp.where(tables.progress * parts >= parts - 1, count, n)
    interval = -(-(2 * index - 1) * n // (2 * count))
    return _nearest_row(interval, n, count), _nearest_row(interval - 1, n, count)


def _nearest_row(i: Labels, n: Scalar, count: Scalar) -> Int[Array, " B"]:
    """The level nearest to i / n of `count` levels."""
    return (2 * i * count + n) // (2 * n)


def ect_level(
    index: Int[Array, " B"], tables: LevelTables, q: float, parts: int
) -> Int[Array, " B"]:
    """The level of ECT's target, `[B]`: the one nearest to the mapped noise level, below `index`.

    Args:
      index: `[B]` levels in 1 .. N.
      tables: the levels; `tables.progress` says how far the training is.
      q, parts: `ect_q` and `ect_stages` of `Consistency`.
    """
    part = jnp.minimum(jnp.floor(tables.progress * parts), parts - 1)
    noise = _noise(tables.student)
    here = noise[index]
    wanted = here * ect_ratio(here, q, part)
    above = jnp.clip(jnp.searchsorted(noise, wanted), 1, index)
    nearest = above - (wanted - noise[above - 1] < noise[above] - wanted)
    return jnp.minimum(nearest, index - 1).astype(jnp.int32)


def ect_ratio(noise: Float[Array, " B"], q: float, part: Scalar | int) -> Float[Array, " B"]:
    """The ratio of the target's noise to that of the student, in [0, 1) (arXiv 2406.14548)."""
    ratio = 1.0 - (1.0 + 8.0 * jax.nn.sigmoid(-noise)) / q ** (part + 1.0)
    return jnp.maximum(ratio, 0.0)


def _noise(levels: Schedule) -> Float[Array, " T_1"]:
    return jnp.asarray(levels.sigma) / jnp.asarray(levels.alpha)
