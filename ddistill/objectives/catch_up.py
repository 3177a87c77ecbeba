"""Catch-Up Distillation: a flow that learns from data and from its own next step at once.

Source: arXiv 2305.10769, with the settings of its released code. The velocity at a noisy image is
regressed onto eps - x0, as in flow matching, and onto the velocity that the same network, as a
constant, has a short step further along its own path. There is no teacher. With a second head the
step is one of Heun's method, and the head answers for twice the step ("RK-2").

The velocity is eps - x0 with respect to t = sigma / (alpha + sigma), so that any schedule is the
straight path with other values of t. The released code draws t and the step from continuous laws;
here both are rows of the student's levels.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PyTree

from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import Prediction, ddim_step, expand, mean_flow
from ddistill.errors import ConfigError
from ddistill.networks.head import Head
from ddistill.networks.weights import Weights
from ddistill.objectives.base import Objective, check_not_negative, filled_in, predict
from ddistill.objectives.distances import mean_per_example
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import (
    Auxiliary,
    Bound,
    ImageShape,
    NetworkForm,
    Networks,
    Requirements,
    StageFacts,
    Taps,
    Update,
)
from ddistill.objectives.path_slopes import velocity
from ddistill.objectives.sampling import draw_index, uniform_index
from ddistill.objectives.states import State, noised
from ddistill.typing import Images, Labels, Metrics, PerExample

_TAP = "last"


@dataclass(frozen=True)
class CatchUp(Objective):
    """Catch-Up (arXiv 2305.10769): flow matching, and the student's own velocity a step further.

    Attributes:
      runge_kutta: order of the step: 1 (Euler's method) or 2 (Heun's, with a second head that is
        used in training alone).
      largest_step: longest step as a share of the levels; its number of rows is uniform on
        1 .. round(largest_step N).
      catch_up_weight: of the distance to the velocity a step further.
      data_weight: of the distance to eps - x0, flow matching; both terms are means over pixels,
        and those of the second head have the same weights.
      head_width: channels of the second head.
    """

    runge_kutta: int = 1
    largest_step: float = 1 / 16
    catch_up_weight: float = 1.0
    data_weight: float = 1.0
    head_width: int = filled_in(0)

    def __post_init__(self):
        if self.runge_kutta not in (1, 2):
            raise ConfigError(f"objective.runge_kutta={self.runge_kutta} must be 1 or 2.")
        if not 0.0 < self.largest_step <= 1.0:
            raise ConfigError(
                f"objective.largest_step={self.largest_step} is a share of the levels; it must be "
                "above 0 and at most 1."
            )
        check_not_negative(self, "catch_up_weight", "data_weight")
        if not self.data_weight:
            raise ConfigError(
                f"objective.data_weight={self.data_weight} leaves data only at the cleanest "
                "levels, and a constant velocity fulfils the rest. Set it above 0."
            )

    def prepare(self, facts: StageFacts) -> Self:
        """Notes the width of the second head.

        Raises:
          ConfigError: a grid on which every step ends at the clean level, or a student that
            predicts eps.
        """
        if facts.num_steps <= self.runge_kutta:
            raise ConfigError(
                f"a grid of {facts.num_steps} steps: with objective.runge_kutta={self.runge_kutta} "
                "every step ends at the clean level, and nothing is left but flow matching. Set "
                "grid.steps to 16 or more, or to 0 for all of the teacher's levels."
            )
        if facts.networks.student_prediction == "eps":
            raise ConfigError(
                "prediction='eps': the velocity eps - x0 divides its error by alpha, nearly 0 in "
                "noise. Allowed: flow, v, x0, edm."
            )
        features = facts.networks.student_features
        width = features[_TAP][-1] if _TAP in features else 0
        return dataclasses.replace(super().prepare(facts), head_width=width)

    @property
    def requires(self) -> Requirements:
        """All levels."""
        return Requirements(
            all_levels="the target of a student is its own velocity at a lower level"
        )

    @property
    def taps(self) -> Taps:
        """The features that the second head reads."""
        return Taps((_TAP,) if self.runge_kutta == 2 else ())

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The second head."""
        if self.runge_kutta == 1:
            return {}
        return {"head": Auxiliary(_head_form(self.head_width), Head(self.head_width))}

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student and its second head."""
        return (Update(("student", *self.auxiliaries), self.loss),)

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """Both distances of every head at a random level."""
        state = noised(batch, tables, draw_index(batch.key("level"), tables), batch.cond)
        longest = jnp.maximum(1, jnp.round(self.largest_step * tables.count).astype(jnp.int32))
        rows = uniform_index(batch.key("step"), 1, longest)
        student, z, level, key = networks["student"], state.z, state.level, state.dropout_key
        prediction, features = predict(student, self.taps.student, z, level, state.cond, key)
        found = [velocity(prediction)]
        if self.runge_kutta == 2:
            found.append(networks["head"](features[_TAP], z))
        data = velocity(state.data)
        targets = self.targets(student, jax.lax.stop_gradient(prediction), state, rows, tables)
        metrics: dict[str, Array] = {}
        values = jnp.zeros(z.shape[0])
        for prefix, ours, wanted in zip(("", "head_"), found, targets):
            ahead, matching = (mean_per_example(jnp.square(ours - x)) for x in (wanted, data))
            metrics[f"{prefix}catch_up_distance"] = jnp.mean(ahead)
            metrics[f"{prefix}data_distance"] = jnp.mean(matching)
            values = values + self.catch_up_weight * ahead + self.data_weight * matching
        return values, metrics

    def targets(
        self,
        student: NetworkDenoiser,
        prediction: Prediction,
        state: State,
        rows: Labels,
        tables: LevelTables,
    ) -> list[Images]:
        """The student's velocities `[B, H, W, C]` one step further, and two with a second head.

        Where the last of these steps ends at the clean level or below, all are eps - x0 of the
        data.

        Args:
          student: the network.
          prediction: its prediction at `state.z`, a constant.
          state: the noisy images.
          rows: `[B]`, the step as a number of rows.
          tables: the levels.
        """
        z, here = state.z, state.level
        key = {} if state.dropout_key is None else {"key": state.dropout_key}
        below = [
            tables.student.at(jnp.maximum(state.index - k * rows, 1))
            for k in range(1, self.runge_kutta + 1)
        ]
        slope = prediction
        if self.runge_kutta == 2:
            euler = ddim_step(prediction, z, here, below[0])
            slope = mean_flow(prediction, student(euler, below[0], state.cond, **key), z, here)
        clean = expand(state.index <= self.runge_kutta * rows, z)
        further = [
            velocity(student(ddim_step(slope, z, here, there), there, state.cond, **key))
            for there in below
        ]
        data = velocity(state.data)
        return [jax.lax.stop_gradient(jnp.where(clean, data, x)) for x in further]


def _head_form(channels: int) -> NetworkForm:
    """The second head as a function of features `[B, H, W, channels]` and noisy images."""

    def inputs(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
        del conditional
        return jnp.zeros((1, *image_shape[:2], channels)), jnp.zeros((1, *image_shape))

    def bind(module: nn.Module, weights: Weights, prediction: str) -> Bound:
        del prediction
        return partial(module.apply, weights.variables())

    return NetworkForm("denoiser", inputs, bind)
