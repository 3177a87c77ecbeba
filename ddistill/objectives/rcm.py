"""rCM: a consistency model in continuous time with distribution matching on its own rollouts.

Source: arXiv 2510.08431, and its released code. The consistency loss covers the modes of the data,
and distribution matching sharpens the images. The latter judges images that the student makes in
one to a few steps of its own sampler at random levels, with a gradient through the last one.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.denoiser import DenoiserLike
from ddistill.diffusion import add_noise, expand
from ddistill.errors import ConfigError
from ddistill.objectives.base import check_not_negative
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.matching.generator import (
    GeneratorInput,
    generate,
    initial_input,
)
from ddistill.objectives.matching.losses import Matching
from ddistill.objectives.parts import (
    Alarm,
    Auxiliary,
    Diagnostics,
    LossAux,
    Networks,
    StageFacts,
    Update,
)
from ddistill.objectives.path_slopes import check_dense
from ddistill.objectives.sampling import draw_condition, normal, uniform_index
from ddistill.objectives.scm import ContinuousConsistency
from ddistill.objectives.two_time import check_prediction, tangent_alarms
from ddistill.runtime.rng import named_keys
from ddistill.typing import Keys, Metrics


@dataclass(frozen=True)
class RCM(ContinuousConsistency, Matching):
    """rCM (arXiv 2510.08431): sCM, and distribution matching on rollouts of the student.

    The student learns at one step in `student_every`, the fake denoiser at the others.

    Attributes:
      consistency_weight: of the loss of sCM beside that of distribution matching, which has a
        factor of 0.5: the 100 of the released code, which has none, is 50 here.
      rollout_length: largest number of steps of a rollout; each has a random number from 1 on, at
        random levels.
    """

    log_mean: float = 0.7
    log_std: float = 1.6
    tangent_warmup: int = 5000  # 1000 updates of the student
    tangent_norm: str = "l2"
    learned_weight: bool = False
    student_every: int = 5
    alternate: bool = True
    backward: str = "rollout"
    consistency_weight: float = 50.0
    rollout_length: int = 4

    def __post_init__(self):
        self.check_tangents()
        check_not_negative(self, "consistency_weight")
        if self.rollout_length < 1:
            raise ConfigError(f"objective.rollout_length={self.rollout_length} must be 1 or more.")
        if self.backward != "rollout":
            raise ConfigError(
                f"objective.backward={self.backward!r}: the images of objective 'rcm' come from "
                "rollouts of the student. Allowed: rollout."
            )
        super().__post_init__()

    def prepare(self, facts: StageFacts) -> Self:
        """Notes what distribution matching reads; refuses what sCM and it cannot work with."""
        check_dense(facts.num_steps)
        check_prediction(facts.networks.student_prediction)
        return super().prepare(facts)

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """Those of distribution matching, and the learnt weight."""
        return {**super().auxiliaries, **self.time_weight}

    @property
    def updates(self) -> tuple[Update, ...]:
        """The student's, and one of everything that judges it, on the same images."""
        student, judges = super().updates
        judging = tuple(name for name in judges.trained if name not in self.time_weight)
        return (
            dataclasses.replace(student, trains=("student", *self.time_weight)),
            dataclasses.replace(judges, trains=judging),
        )

    @property
    def any_steps(self) -> bool:
        """The image is predicted at every level."""
        return True

    @property
    def diagnostics(self) -> Diagnostics:
        """Those of distribution matching, and a derivative that grows."""
        matching = super().diagnostics

        def alarms(means: Mapping[str, float]) -> tuple[Alarm, ...]:
            return (*matching.alarms(means), *tangent_alarms(means))

        return dataclasses.replace(matching, alarms=alarms)

    def first_factor(self, cos: Array, sin: Array, share: Array | float) -> Array:
        """cos(t) sqrt(1 - r^2 sin(t)^2), which is cos(t)^2 after the warm-up (released code)."""
        return cos * jnp.sqrt(jnp.maximum(0.0, 1.0 - jnp.square(share * sin)))

    def teacher_calls(self, each: int = 1) -> float:
        """Those of distribution matching, and one at the student's updates for the path."""
        path = each / self.student_every if self.velocity_from == "teacher" else 0
        return super().teacher_calls(each) + path

    def student_loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[Float[Array, " B"], Metrics, LossAux]:
        """Both losses."""
        values, metrics, aux = super().student_loss(networks, batch, tables)
        own, found = self.consistency_loss(networks, batch, tables)
        return values + self.consistency_weight * own, {**metrics, **found}, aux

    def _input(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[GeneratorInput, Mapping[str, Array]]:
        keys = batch.key("generator")
        cond = draw_condition(named_keys(keys, "class"), batch, tables)
        start = initial_input(normal(named_keys(keys, "noise"), batch.image), tables, cond)
        return rolled_in(networks["student"], start, keys, tables, self.rollout_length), {}


def rolled_in(
    student: DenoiserLike, start: GeneratorInput, keys: Keys, tables: LevelTables, longest: int
) -> GeneratorInput:
    """The input of the last step of the student's own sampler in 1 to `longest` steps, a constant.

    Every step is followed by fresh noise at a random level below the one before.

    Args:
      student: the network.
      start: noise at the noisiest level.
      keys: `[B]`.
      tables: the levels.
      longest: most steps.
    """
    count = uniform_index(named_keys(keys, "length"), 1, longest)
    index = jnp.broadcast_to(tables.count, count.shape)
    found, row, now = start.z, index, start
    for i in range(1, longest):
        fresh = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(named_keys(keys, "walk"))
        index = uniform_index(named_keys(fresh, "level"), 1, jnp.maximum(index - 1, 1))
        there = tables.student.at(index)
        z = add_noise(generate(student, now), normal(named_keys(fresh, "noise"), found), there)
        now = GeneratorInput(z, there, start.cond)
        goes_on = count > i
        found = jnp.where(expand(goes_on, z), z, found)
        row = jnp.where(goes_on, index, row)
    return GeneratorInput(jax.lax.stop_gradient(found), tables.student.at(row), start.cond)
