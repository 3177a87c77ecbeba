"""Sampler runs of students that diverged, which are not sampled."""

from collections.abc import Sequence

from ddistill.errors import in_words
from ddistill.evaluation.sampling_plan import SamplerRun


def without_diverged(runs: Sequence[SamplerRun]) -> tuple[list[SamplerRun], list[str]]:
    """Separates the runs of students that diverged.

    A student of a sweep is left out alone. The students of a partition generate images together,
    so one diverged student leaves out all of them.

    Returns:
      (runs to sample, one message for each run that is left out).
    """
    kept, left_out = [], []
    for run in runs:
        diverged = run.plan.diverged_students()
        if run.student is not None:
            diverged = [k for k in diverged if k == run.student]
        if diverged:
            left_out.append(
                f"{run.label}: not scored, because student {in_words(diverged)} of stage "
                f"'{run.plan.name}' diverged"
            )
        else:
            kept.append(run)
    return kept, left_out
