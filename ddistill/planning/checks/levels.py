"""Checks of a stage's noise levels, and notes for the user before a run starts."""

from collections.abc import Iterable

from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError
from ddistill.objectives import Objective
from ddistill.planning.context import StageContext
from ddistill.planning.plan import StagePlan, StudentPlan
from ddistill.schedules import NOISE, Schedule, build_schedule, last_log_snr
from ddistill.settings import Settings, StageSettings

# Below this an eps-prediction says nothing about the image in float32.
_NO_SIGNAL = 1e-7


def check_levels(
    context: StageContext, objective: Objective, students: Iterable[StudentPlan]
) -> None:
    """Raises `ConfigError` for levels on which students cannot start from noise or cannot end."""
    stage, path = context.settings, context.path
    if not objective.trains.on_levels:
        return
    for student_plan in students:
        _check_top(stage, student_plan.levels, context.table.levels, path)
        alpha = float(student_plan.levels.alpha[-1])
        if stage.prediction == "eps" and alpha < _NO_SIGNAL:
            raise ConfigError(
                f"{path}.prediction='eps', but the noisiest level has alpha={alpha:.2g}: no image "
                "follows from the noise there. Set prediction='v' or 'x0', or a config.schedule "
                "that ends at a larger alpha."
            )
        reason = objective.requires.last_image
        if reason and alpha < _NO_SIGNAL:
            raise ConfigError(
                f"{path}: the noisiest level has alpha={alpha:.2g}, and {reason}. Set a "
                "config.schedule that ends at a larger alpha, such as 'cosine'."
            )


def _check_top(stage: StageSettings, levels: Schedule, known: Schedule, path: str) -> None:
    """Raises `ConfigError` for a list of levels that ends before noise.

    A spacing that does so is a note, see `notes`.
    """
    listed, found = stage.grid.explicit, last_log_snr(levels)
    if not listed or listed[-1] == known.num_steps or found <= NOISE:
        return
    raise ConfigError(
        f"{path}.grid.explicit ends at {listed[-1]}, a level of alpha={levels.alpha[-1]:.2g} "
        f"(log-SNR {found:.1f}), where images are still seen, but sampling starts from pure noise. "
        f"End it at {known.num_steps}."
    )


def notes(plans: Iterable[StagePlan], settings: Settings, data: DataFacts) -> list[str]:
    """Settings that work and are probably a mistake, one line each.

    Args:
      plans: the stages of a run.
      settings: its settings.
      data: its training images.
    """
    said, made = [], settings.schedule
    schedule = build_schedule(made.name, made.steps, **made.options)
    if last_log_snr(schedule) > NOISE:
        said.append(
            f"schedule: the teacher's levels end at alpha={schedule.alpha[-1]:.2g}, where images "
            "are still seen; samplers start from pure noise, which the teacher has not learnt."
        )
    for plan in plans:
        s = plan.settings
        top = last_log_snr(plan.levels)
        if plan.objective.trains.on_levels and top > max(NOISE, last_log_snr(schedule)):
            said.append(
                f"{plan.name}: grid.spacing={s.grid.spacing!r} has its noisiest level at "
                f"alpha={plan.levels.alpha[-1]:.2g}, where images are still seen; students start "
                "from pure noise."
            )
        if plan.objective.trains.kind == "pairs" or not s.steps:
            continue
        if not plan.objective.requires.images:
            said.append(f"{plan.name}: learns from noise alone; no image of the data is read.")
            continue
        fewest = min(data.images_of(student_plan.classes) for student_plan in plan.students)
        if s.batch_size > fewest:
            which = " of its classes" if fewest < data.num_images else ""
            said.append(
                f"{plan.name}: batch_size={s.batch_size}, but there are {fewest} training images"
                f"{which}: a batch shows some more than once."
            )
    return said
