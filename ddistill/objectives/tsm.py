"""TSM: a smaller student learns the teacher's prediction before it becomes a generator.

Teacher score matching, the first stage of MSD (arXiv 2410.23274): without it small students of
distribution matching do not converge. It is O2MKD's distillation of one output, in x0, with EDM's
weights and EDM's distribution of noise levels (arXiv 2206.00364 table 1).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.diffusion import add_noise
from ddistill.errors import check_choice
from ddistill.objectives.base import Metrics, Networks, Objective, Update
from ddistill.objectives.denoising import WEIGHTS, weighted_error
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.sampling import LAWS, draw_level, mean_per_example, normal, streams


@dataclass(frozen=True)
class TSM(Objective):
    """E lambda |student(x_t) - teacher(x_t)|^2 over the data's images, noised.

    Attributes:
      weight: lambda, of the x0 error; see `weighted_error`.
      levels: how noise levels are drawn, see `draw_level`.
    """

    needs_teacher = True

    weight: str = "edm"
    levels: str = "lognormal"

    def __post_init__(self):
        check_choice("objective.weight", self.weight, WEIGHTS)
        check_choice("objective.levels", self.levels, LAWS)

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student."""
        return (Update("student", self.loss),)

    def teacher_calls(self, each: int = 1) -> float:
        """One."""
        return each

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[Float[Array, " B"], Metrics]:
        """The weighted distance at a level of the student's."""
        level_keys, noise_keys = streams(batch.keys, 2)
        index = draw_level(level_keys, tables, self.levels)
        level, teacher_level = tables.student.at(index), tables.teacher.at(tables.grid[index])
        z = add_noise(batch.image, normal(noise_keys, batch.image), level)
        student = networks["student"](z, level, batch.cond, key=batch.keys[0])
        teacher = jax.lax.stop_gradient(networks["teacher"](z, teacher_level, batch.cond))
        values = weighted_error(student, teacher, z, level, "x0", self.weight)
        x0_error = mean_per_example(jnp.square(student.x0 - batch.image))
        return values, {"x0_mse": jnp.mean(x0_error)}
