"""sCM: consistency models in continuous time, from a teacher (sCD) or from data (sCT).

Source: arXiv 2410.11081, and public implementations of it. In TrigFlow coordinates a noisy image
is z = cos(t) x0 + sin(t) sd eps with tan(t) = sigma / (alpha sd), and a network says F with

    D(z, t) = cos(t) z - sin(t) sd F(z, t),        dz/dt = sd F of the path.

Networks of any kind on any schedule are read that way: F is the negative of EDM's output, which
does not depend on the scale of z. The tangent of the consistency function D along the path is

    g = -cos(t)^2 (sd F - dz/dt) - r cos(t) sin(t) (z + sd dF/dt) = cos(t) dD/dt at r = 1,

where r grows from 0 to 1 at the start of the training. F is regressed onto F + g of itself as a
constant, with g normalised and a weight per noise level that is learnt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from ddistill.diffusion import Prediction, expand, output_of
from ddistill.errors import ConfigError, check_choice
from ddistill.networks.time_weight import TimeWeight
from ddistill.networks.weights import Weights
from ddistill.objectives.base import Objective, check_not_negative, check_unused
from ddistill.objectives.distances import mean_per_example
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import (
    Auxiliary,
    Bound,
    Diagnostics,
    ImageShape,
    NetworkForm,
    Networks,
    Requirements,
    StageFacts,
    Update,
)
from ddistill.objectives.path_slopes import check_dense, path_slope, scaled, with_derivative
from ddistill.objectives.sampling import Law, draw_level
from ddistill.objectives.states import State, noised
from ddistill.objectives.two_time import VELOCITIES, check_prediction, tangent_alarms
from ddistill.schedules import Level
from ddistill.typing import Images, Metrics, PerExample

TANGENT_NORMS = ("rms", "l2", "none")
WEIGHT = "time_weight"


def _weight_inputs(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
    del image_shape, conditional
    return (jnp.zeros((1,)),)


def _bind_weight(module: nn.Module, weights: Weights, prediction: str) -> Bound:
    del prediction
    return partial(module.apply, weights.variables())


TIME_WEIGHT = NetworkForm("denoiser", _weight_inputs, _bind_weight)


@dataclass(frozen=True)
class ContinuousConsistency(Objective):
    """The loss of sCM and its hyperparameters.

    Attributes:
      velocity_from: "teacher" (sCD): the path is the teacher's, guided where the stage sets
        `guidance`; "data" (sCT): it is that of the noisy image's own noise and image.
      sigma_data: sd of TrigFlow's coordinates, the standard deviation of the data.
      log_mean, log_std: of the normal logarithm of sigma / alpha at which examples are drawn, on
        the rows of the student's levels.
      tangent_warmup: train steps in which r grows from 0 to 1; 0 for r = 1 from the start.
      tangent_norm: the size |g| by which g / (|g| + c) divides: "rms", the root mean square over
        pixels, which does not depend on the size of images; "l2", the root of the sum of squares;
        "none" leaves g as it is.
      tangent_floor: c.
      learned_weight: whether the weight of a noise level is learnt, by the network "time_weight".
      inverse_sigma: whether the loss is also divided by sigma / alpha, as in the paper and in
        FastGen; other public implementations on small images leave it out.
    """

    velocity_from: str = "teacher"
    sigma_data: float = 0.5
    log_mean: float = -1.0
    log_std: float = 1.4
    tangent_warmup: int = 10_000
    tangent_norm: str = "rms"
    tangent_floor: float = 0.1
    learned_weight: bool = True
    inverse_sigma: bool = False

    def check_tangents(self) -> None:
        """Raises `ConfigError` for hyperparameters that cannot work."""
        check_choice("objective.velocity_from", self.velocity_from, VELOCITIES)
        check_choice("objective.tangent_norm", self.tangent_norm, TANGENT_NORMS)
        check_not_negative(self, "tangent_warmup")
        if self.tangent_norm == "none":
            check_unused(self, "objective.tangent_norm is 'none'", "tangent_floor")
        for name in ("sigma_data", "log_std", "tangent_floor"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise ConfigError(f"objective.{name}={getattr(self, name)} must be above 0.")

    @property
    def time_weight(self) -> Mapping[str, Auxiliary]:
        """The network of the learnt weight, if there is one."""
        return {WEIGHT: Auxiliary(TIME_WEIGHT, TimeWeight())} if self.learned_weight else {}

    def consistency_loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """The weighted distance of F to F + g."""
        law = Law("lognormal", self.log_mean, self.log_std)
        state = noised(batch, tables, draw_level(batch.key("level"), tables, law), batch.cond)
        direction = state.data
        if self.velocity_from == "teacher":
            teacher = networks["teacher"]
            direction = teacher(state.z, state.teacher_level, state.cond)
        direction = jax.lax.stop_gradient(direction)
        # In the logarithm of sigma / alpha, of which cos(t) sin(t) is the derivative of t: so no
        # factor of the derivative grows towards the ends.
        alpha, sigma = state.level.alpha, state.level.sigma
        factor = alpha * sigma / jnp.square(alpha + sigma)
        slope = scaled(path_slope(tables, state.index), factor)
        found, change = with_derivative(
            networks["student"], self.trig_output, state, direction, slope
        )
        fixed, change = jax.lax.stop_gradient((found, change))
        tangent = self.tangent(fixed, change, state, direction, self.warmed_up(tables))
        normal = self.normalised(tangent)
        squared = mean_per_example(jnp.square(found - fixed - normal))
        metrics = {
            "tangent_rms": jnp.sqrt(jnp.mean(jnp.square(tangent))),
            "consistency_distance": jnp.mean(squared),
        }
        return self.weighted(networks, squared, state, metrics), metrics

    def trig_output(self, prediction: Prediction, z: Images, level: Level) -> Images:
        """F of a prediction."""
        return -output_of("edm", prediction, z, level, self.sigma_data)

    def tangent(
        self,
        output: Images,
        change: Images,
        state: State,
        direction: Prediction,
        share: Array | float,
    ) -> Images:
        """g.

        Args:
          output: F at the state.
          change: cos(t) sin(t) dF/dt.
          state: the noisy images.
          direction: the prediction of the path.
          share: r.
        """
        sd, level = self.sigma_data, state.level
        root = jnp.sqrt(jnp.square(level.sigma) + jnp.square(level.alpha * sd))
        cos, sin = (expand(x / root, state.z) for x in (level.alpha * sd, level.sigma))
        moves = cos * sd * direction.eps - sin * direction.x0
        inner = cos * sin * expand(sd / root, state.z) * state.z + sd * change
        return -self.first_factor(cos, sin, share) * (sd * output - moves) - share * inner

    def first_factor(self, cos: Array, sin: Array, share: Array | float) -> Array:
        """The factor of the distance to the path, cos(t)^2."""
        del sin, share
        return jnp.square(cos)

    def warmed_up(self, tables: LevelTables) -> Array | float:
        """r at this step."""
        if not self.tangent_warmup:
            return 1.0
        return jnp.minimum(1.0, jnp.asarray(tables.step, jnp.float32) / self.tangent_warmup)

    def normalised(self, tangent: Images) -> Images:
        """g / (|g| + c)."""
        if self.tangent_norm == "none":
            return tangent
        axes = tuple(range(1, tangent.ndim))
        reduce = jnp.mean if self.tangent_norm == "rms" else jnp.sum
        size = jnp.sqrt(reduce(jnp.square(tangent), axis=axes, keepdims=True))
        return tangent / (size + self.tangent_floor)

    def weighted(
        self, networks: Networks, squared: PerExample, state: State, metrics: dict[str, Array]
    ) -> PerExample:
        """The loss of examples from their squared distances; adds the mean learnt weight."""
        signal = state.level.alpha / state.level.sigma
        if self.inverse_sigma:
            squared = squared * signal
        if not self.learned_weight:
            return squared
        # Bounded, because alpha can be 0 at the noisiest level.
        w: Float[Array, " B"] = networks[WEIGHT](-jnp.log(jnp.maximum(signal, 1e-4)))
        metrics["log_weight"] = -jnp.mean(w)
        return jnp.exp(-w) * squared + w


@dataclass(frozen=True)
class SCM(ContinuousConsistency):
    """sCM (arXiv 2410.11081): sCD from a teacher, sCT from data, by the tangent of the path.

    The number of levels is that of the rows on which the path is read, and not of sampling steps.
    """

    def __post_init__(self):
        self.check_tangents()

    def prepare(self, facts: StageFacts) -> Self:
        """As is.

        Raises:
          ConfigError: a grid of too few levels, or a prediction that divides.
        """
        check_dense(facts.num_steps)
        check_prediction(facts.networks.student_prediction)
        return super().prepare(facts)

    @property
    def requires(self) -> Requirements:
        """All levels, and the teacher, if the path is its own."""
        from_teacher = "objective.velocity_from='teacher' takes the path from it"
        return Requirements(
            teacher=from_teacher if self.velocity_from == "teacher" else "",
            all_levels="the image of a consistency model at one level is its image at a lower one",
        )

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The learnt weight."""
        return self.time_weight

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student and of the learnt weight."""
        return (Update(("student", *self.auxiliaries), self.consistency_loss),)

    @property
    def sampler(self) -> str:
        """Several steps noise the image again (arXiv 2303.01469 algorithm 1)."""
        return "renoise"

    @property
    def any_steps(self) -> bool:
        """The image is predicted at every level."""
        return True

    def teacher_calls(self, each: int = 1) -> int:
        """One where the path is the teacher's."""
        return each if self.velocity_from == "teacher" else 0

    @property
    def diagnostics(self) -> Diagnostics:
        """A derivative that grows."""
        return Diagnostics(alarms=tangent_alarms)
