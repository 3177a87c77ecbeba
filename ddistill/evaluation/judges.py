"""What the two denoisers of distribution matching say of a student's images: pictures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddistill.diffusion import add_noise
from ddistill.evaluation.images import Grid, ImageRow
from ddistill.evaluation.sampling import noise_bank
from ddistill.networks.weights import Weights
from ddistill.objectives.generator import ask, starting
from ddistill.objectives.matching import score_difference
from ddistill.objectives.matching_settings import MatchingSettings
from ddistill.settings import EvaluationSettings
from ddistill.students import take
from ddistill.training.pipeline import guided
from ddistill.training.stages import StagePlan
from ddistill.training.weights import Networks, load_state

# Students of a stage whose panels are shown, and images in a panel.
SHOWN, IMAGES = 5, 10


def judge_grids(
    plans: list[StagePlan], networks: Networks, settings: EvaluationSettings
) -> list[Grid]:
    """For every stage with a fake denoiser a block of rows, four for each student.

    The student's images from the noise bank's noise; what the teacher and the fake denoiser make of
    them, noised to the middle of the levels; and where the difference drives the student.
    """
    by_name = {plan.name: plan for plan in plans}
    return [
        _grid(plan, networks(by_name[plan.settings.teacher]), settings)
        for plan in plans
        if isinstance(plan.objective, MatchingSettings) and "fake" in plan.modules
    ]


def _grid(plan: StagePlan, teacher: Any, settings: EvaluationSettings) -> Grid:
    state = load_state(plan)
    rows: list[ImageRow] = []
    look = jax.jit(
        lambda params, process, noise, cond: _look(
            plan, params, process, noise, cond, guided(plan, teacher)
        )
    )
    count = min(IMAGES, settings.samples)
    noise = noise_bank(settings, plan.image_shape, 0, count)
    for k, member in list(enumerate(plan.members))[:SHOWN]:
        own = {n: take(tree, k) if plan.stacked else tree for n, tree in state.params.items()}
        known = member.process.classes
        cond = None if known is None else np.resize(np.unique(np.asarray(known)), count)
        whose = f"student {k}" if plan.stacked else "student"
        for label, images in zip(
            (whose, "teacher of them, noised", "fake denoiser", "where the student is driven"),
            look(own, member.process, noise, cond),
        ):
            rows.append(ImageRow(label, np.clip(np.asarray(images), -1, 1)))
    return Grid(
        f"What the judges of '{plan.name}' see",
        rows,
        "Images of the last weights, what both denoisers make of them at the middle noise level, "
        "and the difference that the student follows, scaled to its largest value. Where student, "
        "teacher and fake denoiser look alike and the last row is noise, there is nothing left to "
        "learn; a clear pattern in all columns of the last row is a shift that is not followed.",
    )


def _look(
    plan: StagePlan, params: Any, process: Any, noise: Array, cond: Any, teacher: Any
) -> tuple[Array, ...]:
    objective: Any = plan.objective
    student, fake = (
        objective.bind(n, plan.modules[n], Weights(params[n]), plan.settings.prediction)
        for n in ("student", "fake")
    )
    image = ask(student, starting(noise, process, cond))
    level = process.teacher.at(jnp.full(len(noise), max(1, objective.top // 2), jnp.int32))
    z = add_noise(image, jnp.roll(noise, 1, axis=0), level)
    theirs, ours = teacher(z, level, cond).x0, fake(z, level, cond).x0
    driven = -score_difference(image, ours, theirs, objective.floor)
    largest = jnp.maximum(jnp.max(jnp.abs(driven)), 1e-6)
    return image, theirs, ours, driven / largest
