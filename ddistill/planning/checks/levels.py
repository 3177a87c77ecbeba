"""What is checked of a stage's noise levels, and what a run is told of them before it starts."""

from collections.abc import Iterable

import numpy as np

from ddistill.data import Dataset
from ddistill.errors import ConfigError
from ddistill.objectives import Objective
from ddistill.planning.plan import LevelTable, StagePlan, StudentPlan
from ddistill.schedules import NOISE, Schedule, build_schedule, last_log_snr
from ddistill.settings import Settings, StageSettings

# Below this an eps-prediction says nothing about the image in float32.
_NO_SIGNAL = 1e-7


def check_levels(
    stage: StageSettings,
    objective: Objective,
    students: Iterable[StudentPlan],
    table: LevelTable,
    path: str,
) -> None:
    """Raises `ConfigError` for levels on which students cannot start from noise or cannot end.

    Args:
      stage, objective: of the stage.
      students: its students.
      table: what their grids pick from.
      path: dotted name of the stage, for messages.
    """
    if objective.trains_classifier:
        return
    for student_plan in students:
        _check_top(stage, student_plan.levels, table.levels, path)
        alpha = float(student_plan.levels.alpha[-1])
        if stage.prediction == "eps" and alpha < _NO_SIGNAL:
            raise ConfigError(
                f"{path}.prediction='eps', but the noisiest level has alpha={alpha:.2g}: no image "
                "follows from the noise there. Set prediction='v' or 'x0', or a config.schedule "
                "that ends at a larger alpha."
            )


def _check_top(stage: StageSettings, levels: Schedule, known: Schedule, path: str) -> None:
    """Refuses a list of levels that stops short of noise; of spacings that do, `notes` tells."""
    listed, found = stage.grid.explicit, last_log_snr(levels)
    if not listed or listed[-1] == known.num_steps or found <= NOISE:
        return
    raise ConfigError(
        f"{path}.grid.explicit ends at {listed[-1]}, a level of alpha={levels.alpha[-1]:.2g} "
        f"(log-SNR {found:.1f}), where images are still seen, but sampling starts from pure noise. "
        f"End it at {known.num_steps}."
    )


def notes(plans: Iterable[StagePlan], settings: Settings, dataset: Dataset) -> list[str]:
    """What works and is likely not meant, one line each.

    Args:
      plans: the stages of a run.
      settings: its settings.
      dataset: its training images.
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
        if not plan.objective.trains_classifier and top > max(NOISE, last_log_snr(schedule)):
            said.append(
                f"{plan.name}: grid.spacing={s.grid.spacing!r} has its noisiest level at "
                f"alpha={plan.levels.alpha[-1]:.2g}, where images are still seen; students start "
                "from pure noise."
            )
        if plan.objective.makes_pairs or not s.steps:
            continue
        fewest = min(_images(student_plan, dataset) for student_plan in plan.students)
        if s.batch_size > fewest:
            said.append(
                f"{plan.name}: batch_size={s.batch_size}, but there are {fewest} training images"
                f"{' of its classes' * (fewest < len(dataset))}: a batch shows some more than once."
            )
    return said


def _images(student_plan: StudentPlan, dataset: Dataset) -> int:
    if student_plan.classes is None:
        return len(dataset)
    return int(np.isin(dataset.labels, student_plan.classes).sum())
