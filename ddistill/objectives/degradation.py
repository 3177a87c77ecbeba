"""Degradation: a teacher's score as it turns into that of an untrained generator's images.

Source: DisBack (arXiv 2408.15991), its first stage. The generator is the stage's teacher, taken as
a one-step generator from noise, and stays as it is. A copy of the teacher learns to denoise its
images. Checkpoints on the way (`keep_every`) are scores between the teacher's and that of the
generator's images; distribution matching takes them as teachers in the opposite order.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ddistill.objectives.denoising import Denoising
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.matching.generator import generate, initial_input
from ddistill.objectives.parts import Networks, Requirements
from ddistill.objectives.sampling import draw_condition, normal
from ddistill.objectives.states import State, forward_state


@dataclass(frozen=True)
class Degradation(Denoising):
    """DisBack's degradation (arXiv 2408.15991): `Denoising` on images of the teacher in one step.

    The defaults of `error` and `weight` are those of the fake denoiser of distribution matching.
    """

    teacher_reason: ClassVar[str] = "its images are what the teacher generates in one step"
    reports_data_error: ClassVar[bool] = False

    error: str = "x0"
    weight: str = "edm"

    @property
    def requires(self) -> Requirements:
        """A teacher, and no images."""
        return dataclasses.replace(super().requires, images="")

    def teacher_calls(self, each: int = 1) -> int:
        """One step of the generator."""
        return each

    def state(self, networks: Networks, batch: Batch, tables: LevelTables) -> State:
        """Noisy images of the generator."""
        cond = draw_condition(batch.key("generator class"), batch, tables)
        noise = normal(batch.key("generator noise"), batch.image)
        given = initial_input(noise, tables, cond)
        # The generator is called with its own time, which need not be the student's.
        top = jnp.full(noise.shape[:1], tables.count)
        level = tables.teacher.at(tables.grid[top])
        image = generate(networks["teacher"], dataclasses.replace(given, level=level))
        made = dataclasses.replace(batch, image=jax.lax.stop_gradient(image), cond=cond)
        return forward_state(made, tables, self.level_law, self.condition(made))
