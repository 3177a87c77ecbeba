"""MeanFlow: the mean velocity of the path over an interval, for any number of steps.

Source: arXiv 2505.13447, with the settings of its released code. The mean velocity u(z, t, r) of
the path from t to r obeys

    u + (t - r) du/dt = v,

du/dt the total derivative along the path at fixed r, and v the velocity at t. The student is
regressed onto v - (t - r) du/dt of itself as a constant; the derivative is one forward-mode pass.
v is eps - x0 of the data, or the teacher's velocity: that is distillation, the Eulerian objective
of AYF (arXiv 2506.14603), in which the target has no variance. A share of the examples has r = t,
where the loss is that of flow matching.
"""

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ddistill.conditions import Condition, replace_where
from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import Prediction, convert, expand, flow_time
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import check_dropout, check_not_negative, check_unused
from ddistill.objectives.distances import mean_per_example
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Diagnostics, Networks, StageFacts
from ddistill.objectives.path_slopes import check_dense, path_slope, velocity, with_derivative
from ddistill.objectives.sampling import Law, draw_level
from ddistill.objectives.states import State, noised
from ddistill.objectives.two_time import (
    TwoTime,
    at_once,
    check_prediction,
    mean_of,
    tangent_alarms,
    told,
)
from ddistill.typing import Keys, Metrics, PerExample

_LAWS = {"logit_normal": "lognormal", "uniform": "uniform"}
TIME_LAWS = tuple(_LAWS)
END_RULES = ("sorted", "below")
_MOMENTS = ("time_mean", "time_std", "end_mean", "end_std")


@dataclass(frozen=True)
class MeanFlow(TwoTime):
    """MeanFlow (arXiv 2505.13447): the mean velocity to any cleaner level, by its own derivative.

    Attributes:
      instant_share: share of the examples with r = t, in [0, 1). Those without a label are among
        them.
      time_law: how t and r are drawn: "logit_normal" or "uniform", on the rows of the student's
        levels.
      time_mean, time_std: of log(t / (1 - t)), for "logit_normal".
      end_mean, end_std: the same of the second draw.
      end_rule: what r is: "sorted", the smaller of both draws, t being the larger one; "below", the
        second draw, but at most t.
      adaptive_power: p of the weight (|d|^2 + c)^-p of an example, |d|^2 its squared distance
        summed over pixels; 0 is the plain squared distance.
      adaptive_floor: c of this weight.
      data_guidance, own_guidance: w and k of the guided velocity w v + (1 - w - k) u(null) + k u,
        with the student's own u at r = t (the paper's omega and kappa); the student then generates
        guided images at the scale w / (1 - k) in one call a step. 1 and 0 are no guidance.
      label_dropout: share of the examples with the null condition, r = t and the plain velocity.
      null_class: id of the null class, which is the network's number of classes.
      tangent_warmup: train steps in which the factor of du/dt grows from 0 to 1; 0 for none.
    """

    instant_share: float = 0.75
    time_law: str = "logit_normal"
    time_mean: float = -0.4
    time_std: float = 1.0
    end_mean: float = -0.4
    end_std: float = 1.0
    end_rule: str = "sorted"
    adaptive_power: float = 1.0
    adaptive_floor: float = 1e-2
    data_guidance: float = 1.0
    own_guidance: float = 0.0
    label_dropout: float = 0.0
    null_class: int = -1
    tangent_warmup: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.time_law", self.time_law, TIME_LAWS)
        check_choice("objective.end_rule", self.end_rule, END_RULES)
        check_not_negative(
            self, "adaptive_power", "data_guidance", "own_guidance", "tangent_warmup"
        )
        for name in ("time_std", "end_std", "adaptive_floor"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise ConfigError(f"objective.{name}={getattr(self, name)} must be above 0.")
        for name in ("instant_share", "label_dropout", "own_guidance"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"objective.{name}={getattr(self, name)} must be in [0, 1).")
        if self.time_law == "uniform":
            check_unused(self, "objective.time_law is 'uniform'", *_MOMENTS)
        if not self.adaptive_power:
            check_unused(self, "objective.adaptive_power is 0", "adaptive_floor")
        if self._guides and self.velocity_from == "teacher":
            raise ConfigError(
                f"objective.data_guidance={self.data_guidance} and own_guidance="
                f"{self.own_guidance} guide the velocity of the data, but velocity_from='teacher'. "
                "Leave both at 1 and 0, and set the stage's guidance."
            )

    @property
    def _guides(self) -> bool:
        return (self.data_guidance, self.own_guidance) != (1.0, 0.0)

    def prepare(self, facts: StageFacts) -> Self:
        """As is.

        Raises:
          ConfigError: a grid of too few levels, a prediction that divides, another class as the
            null class, or guidance of a student without conditions.
        """
        check_dense(facts.num_steps)
        check_prediction(facts.networks.student_prediction)
        known, reads_null = facts.networks.num_classes, self._guides or self.label_dropout
        if known and reads_null and self.null_class != known:
            raise ConfigError(
                f"objective.null_class={self.null_class}, but the null class of a network with "
                f"{known} classes is {known}; it would be told another class. Set it to {known}."
            )
        if self._guides and facts.steps and not facts.conditional:
            raise ConfigError(
                f"objective.data_guidance={self.data_guidance} and own_guidance="
                f"{self.own_guidance} guide to a condition, but the student has none. Set "
                "conditional=True, or leave both at 1 and 0."
            )
        check_dropout(self, facts)
        return super().prepare(facts)

    def inert_hparams(self) -> tuple[str, ...]:
        """What has no effect as the others are set."""
        return (
            *(_MOMENTS if self.time_law == "uniform" else ()),
            *(() if self.adaptive_power else ("adaptive_floor",)),
            *(() if self._guides or self.label_dropout else ("null_class",)),
        )

    @property
    def null_class_share(self) -> float | None:
        """The share of dropped labels."""
        return self.label_dropout

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """The adaptively weighted distance to v - (t - r) du/dt."""
        dropped, instant = self.dropped_and_instant(batch)
        index, end = self.interval(batch, tables, instant)
        state = noised(batch, tables, index, self.condition(batch, dropped))
        student = networks["student"]
        direction = self.direction(networks, state)
        if self._guides:
            direction = self.guided(student, state, batch, dropped)
        mean, slope = with_derivative(
            told(student, tables, end),
            lambda prediction, z, level: velocity(prediction),
            state,
            direction,
            path_slope(tables, index),
        )
        span = flow_time(state.level) - flow_time(tables.student.at(end))
        tangent = expand(span, mean) * jax.lax.stop_gradient(slope)
        target = velocity(direction) - self.tangent_share(tables) * tangent
        squared = jnp.square(mean - jax.lax.stop_gradient(target))
        total = jnp.sum(squared, axis=tuple(range(1, squared.ndim)))
        values = total * self.adaptive_weight(total)
        per_pixel = mean_per_example(squared)
        metrics = {
            "velocity_distance": jnp.mean(per_pixel),
            "instant_distance": mean_of(per_pixel, instant),
            "tangent_rms": jnp.sqrt(jnp.mean(jnp.square(tangent))),
        }
        return values, metrics

    def dropped_and_instant(self, batch: Batch) -> tuple[Bool[Array, " B"], Bool[Array, " B"]]:
        """Which examples lose their condition, and which have r = t: all of these, and others."""
        dropped = _chosen(batch.key("label_dropout"), self.label_dropout)
        others = max(0.0, self.instant_share - self.label_dropout) / (1.0 - self.label_dropout)
        return dropped, dropped | _chosen(batch.key("instant"), others)

    def interval(
        self, batch: Batch, tables: LevelTables, instant: Bool[Array, " B"]
    ) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """Rows of t, in 1 .. N, and of r, below t, or t itself where `instant` says so."""
        kind = _LAWS[self.time_law]
        first = draw_level(batch.key("level"), tables, Law(kind, self.time_mean, self.time_std))
        second = draw_level(batch.key("end"), tables, Law(kind, self.end_mean, self.end_std))
        index = jnp.maximum(first, second) if self.end_rule == "sorted" else first
        # Draws are rounded to the next noisier row: r is rounded down, so that it can be clean.
        end = jnp.minimum(first, second) - 1
        return index, jnp.where(instant, index, end)

    def condition(self, batch: Batch, dropped: Bool[Array, " B"]) -> Condition | None:
        """The conditions, the null condition where they are dropped."""
        if batch.cond is None or not self.label_dropout:
            return batch.cond
        return replace_where(dropped, batch.cond, batch.null_or(self.null_class))

    def guided(
        self, student: NetworkDenoiser, state: State, batch: Batch, dropped: Bool[Array, " B"]
    ) -> Prediction:
        """The data's prediction with the guided velocity; its own for dropped conditions."""
        assert batch.cond is not None, "prepare_networks refuses it"
        own, z, level = at_once(student, state.level), state.z, state.level
        null = replace_where(jnp.ones_like(dropped), batch.cond, batch.null_or(self.null_class))
        key = {} if state.dropout_key is None else {"key": state.dropout_key}
        plain = velocity(state.data)
        w, k = self.data_guidance, self.own_guidance
        mixed = w * plain + (1.0 - w - k) * velocity(own(z, level, null, **key))
        if k:
            mixed = mixed + k * velocity(own(z, level, state.cond, **key))
        found = jnp.where(expand(dropped, plain), plain, mixed)
        return convert("flow", jax.lax.stop_gradient(found), z, level)

    def adaptive_weight(self, total: PerExample) -> PerExample | float:
        """The weight of an example by its squared distance, a constant."""
        if not self.adaptive_power:
            return 1.0
        fixed = jax.lax.stop_gradient(total)
        return (fixed + self.adaptive_floor) ** -self.adaptive_power

    def tangent_share(self, tables: LevelTables) -> Array | float:
        """The factor of du/dt at this step."""
        if not self.tangent_warmup:
            return 1.0
        return jnp.minimum(1.0, jnp.asarray(tables.step, jnp.float32) / self.tangent_warmup)

    @property
    def diagnostics(self) -> Diagnostics:
        """A derivative that grows."""
        return Diagnostics(alarms=tangent_alarms)


def _chosen(keys: Keys, share: float) -> Bool[Array, " B"]:
    """Which examples belong to a share of the batch."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)
