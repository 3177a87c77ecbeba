"""Sampler runs of students for any number of steps, beside those of the evaluation."""

from ddistill.errors import ConfigError
from ddistill.evaluation.sampling_plan import SamplerRun, student_grid, student_run, with_inputs
from ddistill.samplers import get_sampler
from ddistill.settings import Settings


def run_of_steps(settings: Settings, run: SamplerRun, count: int) -> SamplerRun:
    """The run of a student for any number of steps with `count` network evaluations per image.

    Args:
      settings: of the run.
      run: a planned sampler run of the student.
      count: network evaluations.

    Raises:
      ConfigError: the student has fewer levels, or no number of steps has `count` evaluations.
    """
    levels = run.student_plan.levels
    steps = get_sampler(run.sampler).steps_for(count)
    if steps is None or steps > levels.num_steps:
        raise ConfigError(
            f"nfe={count} is not possible: stage '{run.plan.name}' has {levels.num_steps} levels, "
            f"and is sampled with {run.sampler}."
        )
    grid = student_grid(run.plan, levels, run.sampler, steps)
    usual = settings.evaluation.student_sampler
    own = student_run(run.plan, run.sampler, steps, grid, run.student, usual)
    return with_inputs(own, settings.evaluation.guidance)
