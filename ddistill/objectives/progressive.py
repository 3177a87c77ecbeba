"""Progressive distillation: a student whose one step does two steps of its teacher.

Sources: arXiv 2202.00512 (PD) and arXiv 2211.12039 (CFD, RCFD: the same target, compared in a
classifier's feature space). A stage halves: its grid keeps every second level of its teacher, which
is the student of the stage before. The two DDIM steps are folded into the x0 that one DDIM step
needs to land where they land, in the convex form that divides by no short step. The teacher's
predictions are not clipped: that would be another ODE.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from ddistill.diffusion import Prediction, ddim_step, from_x0, one_step_target
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.distances import PredictionDistance
from ddistill.objectives.guided import GuidedDistillation
from ddistill.objectives.inputs import LevelTables
from ddistill.objectives.parts import (
    Networks,
    StageFacts,
)
from ddistill.objectives.states import State

# PD's truncated SNR is max(|dx|^2, |deps|^2). It is written in v, whose scale is even over all
# levels.
LOSSES = {
    "truncated_snr": PredictionDistance("v", "truncated_snr"),
    "x0": PredictionDistance("x0"),
    "eps": PredictionDistance("eps"),
    "v": PredictionDistance("v"),
}


@dataclass(frozen=True)
class Progressive(GuidedDistillation):
    """PD (arXiv 2202.00512): two steps of the teacher in one; CFD and RCFD compare features.

    Attributes:
      loss: how images are compared: "truncated_snr" (PD's default), "x0", "eps" or "v".
      pixel_weight: weight of that comparison; CFD and RCFD set it to 0.
    """

    teacher_reason: ClassVar[str] = "its target is two steps of the teacher"

    loss: str = "truncated_snr"
    pixel_weight: float = 1.0

    def __post_init__(self):
        check_choice("objective.loss", self.loss, LOSSES)
        super().__post_init__()

    def prepare(self, facts: StageFacts) -> Self:
        """Refuses a grid that does not leave a teacher level in the middle of every step."""
        grid = facts.grid
        gaps = np.diff(grid)
        if np.any(gaps % 2):
            at = int(np.argmax(gaps % 2))
            raise ConfigError(
                f"objective 'progressive' needs a teacher level in the middle of every step, but "
                f"student levels {at} and {at + 1} are teacher levels {grid[at]} and "
                f"{grid[at + 1]}. Halve: grid.steps={grid[-1] // 2} for this teacher of "
                f"{grid[-1]} steps, if that is even."
            )
        return super().prepare(facts)

    def teacher_calls(self, each: int = 1) -> int:
        """Two steps of one call each."""
        return 2 * each + int(self.rollout_calls(each))

    def distances(self) -> Mapping[str, tuple[str, PredictionDistance]]:
        """The distance in pixels."""
        return {"pixel": ("target", LOSSES[self.loss])}

    def target(self, networks: Networks, state: State, tables: LevelTables) -> Prediction:
        """The prediction whose one DDIM step from `state` ends where two teacher steps end.

        PD's x~ (arXiv 2202.00512 algorithm 2); where the step ends on a clean level it is the
        teacher's second prediction.
        """
        top, bottom = tables.grid[state.index], tables.grid[state.index - 1]
        levels = [tables.teacher.at(i) for i in (top, (top + bottom) // 2, bottom)]
        teacher = networks["teacher"]
        first = teacher(state.z, levels[0], state.cond)
        middle = ddim_step(first, state.z, levels[0], levels[1])
        second = teacher(middle, levels[1], state.cond)
        return from_x0(one_step_target([first.x0, second.x0], levels), state.z, state.level)
