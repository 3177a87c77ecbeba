"""What BOOT and PID share: students that see noise alone, and are told which level is wanted.

The student's input is the noise at the noisiest level, whatever the level is that it answers for;
it only learns of that level by its time input. Its answer is the signal of the path that begins at
this noise e,

    y_t = (z_t - sigma_t e) / alpha_t,

which is the image at the clean end and the mean of the data at the noisy one. One call at the
cleanest level generates an image (the sampler "from_noise"). No image of the data is needed.
"""

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddistill.conditions import Condition
from ddistill.denoiser import NetworkDenoiser
from ddistill.diffusion import Prediction, expand
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import Objective
from ddistill.objectives.distances import REGRESSIONS, regression_distance
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Networks, Requirements, StageFacts
from ddistill.objectives.sampling import normal
from ddistill.schedules import Level
from ddistill.typing import Images, PerExample


@dataclass(frozen=True)
class FromNoise(Objective):
    """The members that BOOT and PID share.

    Attributes:
      distance: of images: "l2", "pseudo_huber", or "classifier" features.
    """

    distance: str = "l2"

    def __post_init__(self):
        check_choice("objective.distance", self.distance, REGRESSIONS)

    def prepare(self, facts: StageFacts) -> Self:
        """Refuses a grid of one step, and a student that predicts eps.

        A grid of one step has no level below the noisiest one, and eps says nothing of the image in
        pure noise.
        """
        if facts.num_steps < 2:
            raise ConfigError(
                "a grid of one step: the student follows the teacher's path over several levels. "
                "Set grid.steps to 2 or more, or to 0 for all of the teacher's levels."
            )
        if facts.networks.student_prediction == "eps":
            raise ConfigError(
                "prediction='eps': the student answers from pure noise, where an image is its "
                "prediction divided by alpha, nearly 0. Allowed: v, x0, edm, flow; with a teacher "
                "that predicts eps, name one of them as the stage's prediction and init='fresh'."
            )
        return super().prepare(facts)

    @property
    def requires(self) -> Requirements:
        """A teacher, all levels, and no images."""
        return Requirements(
            teacher="its student follows the teacher's path",
            classifier="objective.distance is 'classifier'"
            if self.distance == "classifier"
            else "",
            images="",
            all_levels="a student of this objective follows the path through all levels",
        )

    @property
    def sampler(self) -> str:
        """One call, at the cleanest level."""
        return "from_noise"

    def distances_of(self, networks: Networks, image: Images, target: Images) -> PerExample:
        """The distance per example."""
        return regression_distance(self.distance, image, target, networks.get("classifier"))


@dataclass(frozen=True)
class Path:
    """The path of a batch of noises.

    Attributes:
      noise: `[B, H, W, C]`, standard normal.
      cond: `[B]` classes, or None.
      batch: for dropout.
      tables: the levels.
    """

    noise: Images
    cond: Condition | None
    batch: Batch
    tables: LevelTables

    @classmethod
    def of(cls, batch: Batch, tables: LevelTables) -> Self:
        """The paths that begin at the batch's own noise."""
        return cls(normal(batch.key("noise"), batch.image), batch.cond, batch, tables)

    def signal(self, student: NetworkDenoiser, index: Array) -> Images:
        """The student's signal at the levels `index`, `[B]`."""
        top = self.tables.student.at(jnp.broadcast_to(self.tables.count, index.shape))
        start = self.noise * jnp.maximum(1.0, expand(top.sigma, self.noise))
        level = Level(top.alpha, top.sigma, self.tables.student.at(index).time)
        key = self.batch.dropout_key
        return student(start, level, self.cond, **({} if key is None else {"key": key})).x0

    def teacher(self, teacher: NetworkDenoiser, signal: Images, index: Array) -> Prediction:
        """The teacher's prediction at `z_t = alpha_t y_t + sigma_t e`, a constant."""
        level = self.tables.teacher.at(self.tables.grid[index])
        z = expand(level.alpha, signal) * signal + expand(level.sigma, signal) * self.noise
        return jax.lax.stop_gradient(teacher(z, level, self.cond))
