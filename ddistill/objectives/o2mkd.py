"""O2MKD: a teacher's output, learnt by students that each answer for a range of noise levels.

Source: arXiv 2410.04191. The objective is the distillation of one output at one noise level. That
there are many students, and which levels each one is shown, is the stage's `students` setting,
which every other objective can be given too; with one student this is plain knowledge distillation.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.diffusion import Prediction, add_noise
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import (
    Batch,
    Metrics,
    Networks,
    Process,
    Update,
    check_not_negative,
    draw_index,
    mean_per_example,
    normal,
    streams,
)
from ddistill.objectives.classifier_terms import ClassifierTerms
from ddistill.objectives.denoising import ERRORS, WEIGHTS, weighted_error


@dataclass(frozen=True)
class O2MKD(ClassifierTerms):
    """Output distillation at single noise levels.

    With `classifier_weight` above 0 the two predicted clean images are compared in a classifier's
    feature space too.

    Attributes:
      error: quantity whose squared error is taken: "x0", "eps" (the paper's) or "v".
      weight: of a level, as in `weighted_error`.
      output_weight: weight of the distance to the teacher's prediction.
      task_weight: weight of the distance to the data, the teacher's own loss. 0 by default: the
        teacher's prediction is the mean of what it varies around.
    """

    needs_teacher: ClassVar[bool] = True

    error: str = "eps"
    weight: str = "uniform"
    output_weight: float = 1.0
    task_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.error", self.error, ERRORS)
        check_choice("objective.weight", self.weight, WEIGHTS)
        check_not_negative(self, "output_weight", "task_weight")
        if not (self.output_weight or self.task_weight or self.classifier_weight):
            raise ConfigError(
                "objective: output_weight, task_weight and classifier_weight are all 0; set one "
                "above 0."
            )

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student."""
        return (Update("student", self.loss),)

    def teacher_calls(self) -> int:
        """One, unless nothing is asked of the teacher."""
        return int(self.output_weight > 0 or self.classifier_weight > 0)

    def loss(
        self, networks: Networks, batch: Batch, process: Process
    ) -> tuple[Float[Array, " B"], Metrics]:
        """The weighted sum of the distances at a level that the student is trained on."""
        index_keys, noise_keys = streams(batch.keys, 2)
        index = draw_index(index_keys, process)
        level, teacher_level = process.student.at(index), process.teacher.at(process.grid[index])
        noise = normal(noise_keys, batch.image)
        z = add_noise(batch.image, noise, level)
        student = networks["student"](z, level, batch.cond, key=batch.keys[0])
        terms: list[Array] = []
        metrics: Metrics = {}
        if self.teacher_calls():
            teacher = jax.lax.stop_gradient(networks["teacher"](z, teacher_level, batch.cond))
        if self.output_weight:
            distance = weighted_error(student, teacher, z, level, self.error, self.weight)
            metrics["output_distance"] = jnp.mean(distance)
            terms.append(self.output_weight * distance)
        if self.task_weight:
            data = Prediction(x0=batch.image, eps=noise)
            distance = weighted_error(student, data, z, level, self.error, self.weight)
            metrics["task_distance"] = jnp.mean(distance)
            terms.append(self.task_weight * distance)
        if self.classifier_weight:
            distance, found = self.classifier_distance(
                networks["classifier"], student.x0, teacher.x0
            )
            metrics |= found
            terms.append(self.classifier_weight * distance)
        x0_error = mean_per_example(jnp.square(student.x0 - batch.image))
        return jnp.sum(jnp.stack(terms), axis=0), {**metrics, "x0_mse": jnp.mean(x0_error)}
