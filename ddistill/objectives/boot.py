"""BOOT: a one-step student that follows the signal of the teacher's path from noise down.

Source: arXiv 2306.05544; no code was released. The signal y_t of `from_noise` moves from level t to
a cleaner level t' by

    y' = y + (1 - rho_t / rho_t') (x_T(z_t, t) - y),        rho = alpha / sigma,

which is a DDIM step of the teacher. The student's signal at t' is regressed onto that of its own
signal at t. At the noisiest level it is the teacher's prediction (the boundary).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddistill.diffusion import Prediction, expand, snr_step
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import check_not_negative
from ddistill.objectives.from_noise import FromNoise, Path
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import Networks, Update
from ddistill.objectives.sampling import uniform_index
from ddistill.schedules import Level
from ddistill.typing import Images, Metrics, PerExample

STEP_WEIGHTS = ("inverse_square", "uniform")


@dataclass(frozen=True)
class BOOT(FromNoise):
    """BOOT (arXiv 2306.05544): a one-step student that follows the teacher's path without images.

    Attributes:
      step_weight: "inverse_square", 1 / (1 - rho_t / rho_t')^2, with which the distance "l2" is
        that of a step of full length however short the step is; or "uniform", which all other
        distances need.
      boundary_weight: of the error at the noisiest level.
    """

    step_weight: str = "inverse_square"
    boundary_weight: float = 0.1

    def __post_init__(self):
        check_choice("objective.step_weight", self.step_weight, STEP_WEIGHTS)
        if self.step_weight == "inverse_square" and self.distance != "l2":
            raise ConfigError(
                "objective.step_weight='inverse_square' divides by the square of the length of the "
                f"step, which is for distance='l2' alone; with distance={self.distance!r} set "
                "step_weight='uniform'."
            )
        check_not_negative(self, "boundary_weight")
        super().__post_init__()

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student."""
        return (Update("student", self.loss),)

    def teacher_calls(self, each: int = 1) -> int:
        """One on the path, and one at the boundary."""
        return each * (1 + (self.boundary_weight > 0))

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """The distance at a random level, and at the noisiest one."""
        path = Path.of(batch, tables)
        index = uniform_index(batch.key("level"), 2, tables.count)
        student, teacher = networks["student"], networks["teacher"]
        signal = jax.lax.stop_gradient(path.signal(student, index))
        prediction = path.teacher(teacher, signal, index)
        here, there = tables.student.at(index), tables.student.at(index - 1)
        target = next_signal(signal, prediction, here, there)
        values = self.distances_of(networks, path.signal(student, index - 1), target)
        metrics = {"signal_distance": jnp.mean(values)}
        if self.step_weight == "inverse_square":
            values = values / jnp.square(snr_step(here, there)[1])
        if self.boundary_weight:
            top = jnp.broadcast_to(tables.count, index.shape)
            own = path.signal(student, top)
            wanted = path.teacher(teacher, jnp.zeros_like(own), top).x0
            boundary = self.distances_of(networks, own, wanted)
            metrics["boundary_distance"] = jnp.mean(boundary)
            values = values + self.boundary_weight * boundary
        return values, metrics


def next_signal(signal: Images, prediction: Prediction, here: Level, there: Level) -> Images:
    """The signal after a DDIM step of the teacher.

    Args:
      signal: `[B, H, W, C]`, y at `here`.
      prediction: the teacher's, at `alpha y + sigma e`.
      here, there: `[]` or `[B]`.
    """
    share: Array = expand(snr_step(here, there)[1], signal)
    return signal + share * (prediction.x0 - signal)
