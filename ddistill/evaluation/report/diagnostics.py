"""Pictures of what a training saw of its students, for the report: an objective's panels."""

from typing import Any

import jax
import numpy as np

from ddistill.evaluation.figures.image_grids import Grid, ImageRow
from ddistill.evaluation.sampling import noise_bank
from ddistill.networks.weights import Weights
from ddistill.objectives.base import bind
from ddistill.planning.plan import StagePlan
from ddistill.settings import EvaluationSettings
from ddistill.students import take
from ddistill.training.trained import Networks, guided

# Students of a stage whose panels are shown, and images in a panel.
SHOWN, IMAGES = 5, 10


def panel_grids(
    plans: list[StagePlan], networks: Networks, settings: EvaluationSettings
) -> list[Grid]:
    """For every stage whose objective has panels a block of rows: all panels, student by student.

    Args:
      plans: the stages, complete.
      networks: the trained networks.
      settings: for the noise bank.
    """
    by_name = {plan.name: plan for plan in plans}
    return [
        _grid(plan, networks, networks(by_name[plan.settings.teacher]), settings)
        for plan in plans
        if plan.objective.panels
    ]


def _grid(plan: StagePlan, networks: Networks, teacher: Any, settings: EvaluationSettings) -> Grid:
    panels = plan.objective.panels
    assert panels is not None, "panel_grids leaves other stages out"
    params = networks.params(plan)
    count = min(IMAGES, settings.samples)
    noise = noise_bank(settings, plan.image_shape, 0, count)

    @jax.jit
    def look(own, teacher, tables, cond):
        bound = {
            n: bind(plan.objective, n, plan.modules[n], Weights(p), plan.settings.prediction)
            for n, p in own.items()
        }
        bound["teacher"] = guided(plan, teacher)
        return panels.draw(bound, noise, tables, cond)

    rows: list[ImageRow] = []
    for k, student_plan in list(enumerate(plan.students))[:SHOWN]:
        own = {n: take(tree, k) if plan.stacked else tree for n, tree in params.items()}
        known = student_plan.tables.classes
        cond = None if known is None else np.resize(np.unique(np.asarray(known)), count)
        whose = f"student {k}: " if plan.stacked else ""
        for label, images in zip(panels.names, look(own, teacher, student_plan.tables, cond)):
            rows.append(ImageRow(whose + label, np.clip(np.asarray(images), -1, 1)))
    return Grid(f"Inside the stage '{plan.name}'", rows, panels.caption)
