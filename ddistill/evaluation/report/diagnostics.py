"""Pictures that an objective draws of its students (`Objective.diagnostics`), for the report."""

from collections.abc import Mapping

import jax
import numpy as np

from ddistill.evaluation.figures.image_grids import Grid, ImageRow
from ddistill.evaluation.sampling import Network, noise_bank
from ddistill.networks.weights import Weights
from ddistill.objectives.base import bind
from ddistill.planning.plan import StagePlan
from ddistill.settings import EvaluationSettings
from ddistill.students import take
from ddistill.training.trained import Networks, guided

# Students of a stage that are shown, and images of each picture.
SHOWN, IMAGES = 5, 10


def diagnostic_grids(
    plans: list[StagePlan], networks: Networks, settings: EvaluationSettings
) -> list[Grid]:
    """Makes a grid for every stage with an objective that draws pictures, student by student.

    Args:
      plans: the stages, all complete.
      networks: the trained networks.
      settings: gives the noise bank.
    """
    by_name = {plan.name: plan for plan in plans}
    return [
        _grid(plan, networks, by_name, settings)
        for plan in plans
        if plan.objective.diagnostics.panels and plan.tokenizer is None
        if plan.latent_source is None
    ]


def _grid(
    plan: StagePlan,
    networks: Networks,
    plans: Mapping[str, StagePlan],
    settings: EvaluationSettings,
) -> Grid:
    panels = plan.objective.diagnostics.panels
    assert panels is not None, "the caller leaves out stages without panels"
    teacher: Network | None = networks.teacher(plan, plans)
    params, bases = networks.params(plan), networks.bases(plan, plans)
    count = min(IMAGES, settings.samples)
    noise = noise_bank(settings, plan.image_shape, 0, count)

    @jax.jit
    def look(own, bases, teacher, tables, cond):
        bound = {}
        for n, p in own.items():
            weights = Weights(p, base=bases.get(n))
            bound[n] = bind(plan.objective, n, plan.modules[n], weights, plan.settings.prediction)
        bound["teacher"] = None if teacher is None else guided(plan, teacher)
        return panels.draw(bound, noise, tables, cond)

    rows: list[ImageRow] = []
    for k, student_plan in list(enumerate(plan.students))[:SHOWN]:
        own = {n: take(tree, k) if plan.stacked else tree for n, tree in params.items()}
        known = student_plan.tables.classes
        cond = None if known is None else np.resize(np.unique(np.asarray(known)), count)
        prefix = f"student {k}: " if plan.stacked else ""
        for label, images in zip(
            panels.names, look(own, bases, teacher, student_plan.tables, cond)
        ):
            rows.append(ImageRow(prefix + label, np.clip(np.asarray(images), -1, 1)))
    return Grid(f"Inside the stage '{plan.name}'", rows, panels.caption)
