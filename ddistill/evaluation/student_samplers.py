"""Checks of the samplers that a stage names for its students."""

import numpy as np

from ddistill.errors import ConfigError
from ddistill.networks.extras import EXTRAS
from ddistill.planning.checks.sources import not_guidable
from ddistill.planning.plan import StagePlan
from ddistill.samplers import get_sampler


def check_fits(plan: StagePlan, trained_for: str, sampler: str, steps: int) -> None:
    """Raises `ConfigError` where students and a sampler of fixed rows are not made for each other.

    `steps` is 0 for the sampler's own number of steps.
    """
    chosen, own = get_sampler(sampler), get_sampler(trained_for) if trained_for else None
    path = f"config.stages.{plan.name}.samplers"
    by_step = [n for n in plan.objective.extra_inputs if EXTRAS[n].of_step is not None]
    if by_step and sampler != trained_for:
        raise ConfigError(
            f"{path} names '{sampler}', but the students of '{plan.name}' are given {by_step[0]} "
            f"step by step, for steps of '{trained_for}'. Allowed: {trained_for}."
        )
    bound = next((s for s in (own, chosen) if s is not None and s.rows is not None), None)
    if bound is None:
        return
    if sampler != trained_for:
        who = "trained for" if bound is own else "not trained for"
        raise ConfigError(
            f"{path} names '{sampler}', but the students of '{plan.name}' are {who} "
            f"'{bound.name}', which takes another input. Allowed: {trained_for or 'ddim'}."
        )
    calls = bound.evaluations(plan.levels.num_steps)
    if steps not in (0, calls):
        raise ConfigError(
            f"{path}.{sampler}={steps}: '{sampler}' takes {calls} step. Allowed: {calls}."
        )


def check_mid_levels(plan: StagePlan) -> None:
    """Raises `ConfigError` for levels between the steps that no sampler visits."""
    mid, path = plan.settings.mid_levels, f"config.stages.{plan.name}.mid_levels"
    if not all(np.isfinite(x) and x > 0 for x in mid):
        raise ConfigError(f"{path}={mid} are noise levels sigma / alpha; each must be above 0.")
    counts = {steps for every in plan.settings.samplers.values() for steps in every}
    if mid and len(mid) + 1 not in counts:
        raise ConfigError(
            f"{path}={mid} has no effect: config.stages.{plan.name}.samplers has no sampler of "
            f"{len(mid) + 1} steps."
        )


def check_sample_guidance(plan: StagePlan) -> None:
    """Raises `ConfigError` for guidance that the students of a stage cannot be sampled with."""
    scale, path = plan.settings.sample_guidance, f"config.stages.{plan.name}"
    if scale == 1.0:
        return
    if plan.settings.guidance != 1.0:
        raise ConfigError(
            f"{path}.sample_guidance={scale}, but the students learn from a teacher with "
            f"guidance={plan.settings.guidance} and would be guided twice. Set one of them to 1."
        )
    why, remedy = not_guidable(plan)
    if why:
        raise ConfigError(
            f"{path}.sample_guidance={scale}, but '{plan.name}' {why}. Set "
            f"sample_guidance=1{remedy}."
        )
