"""Progressive distillation: a student whose one step does two steps of its teacher.

Sources: arXiv 2202.00512 (PD) and arXiv 2211.12039 (CFD, RCFD: the same target, compared in a
classifier's feature space). A stage halves: its grid keeps every second level of its teacher, which
is the student of the stage before. The two DDIM steps are folded into the x0 that one DDIM step
needs to land where they land, in the convex form that divides by no short step. The teacher's
predictions are not clipped: that would be another ODE.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddistill.diffusion import ddim_step, from_x0, one_step_target
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import Metrics, Networks, Update, check_not_negative
from ddistill.objectives.classifier_terms import ClassifierTerms
from ddistill.objectives.denoising import weighted_error
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.sampling import noisy

# loss -> (error that is squared, weight); PD's truncated SNR is max(|dx|^2, |deps|^2). It is
# written in v, whose scale is even over all levels.
LOSSES = {
    "truncated_snr": ("v", "truncated_snr"),
    "x0": ("x0", "uniform"),
    "eps": ("eps", "uniform"),
    "v": ("v", "uniform"),
}


@dataclass(frozen=True)
class Progressive(ClassifierTerms):
    """Two teacher steps in one.

    Attributes:
      loss: how images are compared: "truncated_snr" (PD's default), "x0", "eps" or "v".
      pixel_weight: weight of that comparison; CFD and RCFD drop it.
    """

    needs_teacher: ClassVar[bool] = True

    loss: str = "truncated_snr"
    pixel_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.loss", self.loss, LOSSES)
        check_not_negative(self, "pixel_weight")
        if self.pixel_weight == self.classifier_weight == 0:
            raise ConfigError(
                "objective: pixel_weight and classifier_weight are both 0; set one above 0."
            )

    def prepare(self, grid: np.ndarray) -> "Progressive":
        """Refuses a grid that does not leave a teacher level in the middle of every step."""
        gaps = np.diff(grid)
        if np.any(gaps % 2):
            at = int(np.argmax(gaps % 2))
            raise ConfigError(
                f"objective 'progressive' needs a teacher level in the middle of every step, but "
                f"student levels {at} and {at + 1} are teacher levels {grid[at]} and "
                f"{grid[at + 1]}. Halve: grid.steps={grid[-1] // 2} for this teacher of "
                f"{grid[-1]} steps, if that is even."
            )
        return self

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the student."""
        return (Update("student", self.value),)

    def teacher_calls(self, each: int = 1) -> int:
        """Two steps of one call each."""
        return 2 * each

    def value(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[Float[Array, " B"], Metrics]:
        """The loss at a student level drawn from 1 .. N."""
        index, level, z = noisy(batch, tables)
        target = from_x0(self.target(networks["teacher"], z, index, batch.cond, tables), z, level)
        student = networks["student"](z, level, batch.cond, key=batch.keys[0])
        values, metrics = jnp.zeros(z.shape[0]), {}
        if self.pixel_weight:
            distance = weighted_error(student, target, z, level, *LOSSES[self.loss])
            values = values + self.pixel_weight * distance
            metrics["pixel_distance"] = jnp.mean(distance)
        if self.classifier_weight:
            distance, found = self.classifier_distance(
                networks["classifier"], student.x0, target.x0
            )
            values = values + self.classifier_weight * distance
            metrics |= found
        return values, metrics

    def target(
        self,
        teacher: Any,
        z: Float[Array, "B H W C"],
        index: Int[Array, " B"],
        cond: Any,
        tables: LevelTables,
    ) -> Float[Array, "B H W C"]:
        """The x0 whose one DDIM step from student level `index` ends where two teacher steps end.

        PD's x~ (arXiv 2202.00512 algorithm 2); where the step ends on a clean level it is the
        teacher's second prediction.
        """
        top, bottom = tables.grid[index], tables.grid[index - 1]
        levels = [tables.teacher.at(i) for i in (top, (top + bottom) // 2, bottom)]
        first = teacher(z, levels[0], cond)
        middle = ddim_step(first, z, levels[0], levels[1])
        second = teacher(middle, levels[1], cond)
        return jax.lax.stop_gradient(one_step_target([first.x0, second.x0], levels))
