"""The strips of a report: the way of each sampler from noise to image."""

from collections.abc import Sequence

from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.figures.image_grids import Strip, Trajectory
from ddistill.evaluation.sampling import picture_source
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.evaluation.scored import ScoredRun, comparable

# Samplers in the strips, unless there are more methods, and rows of all samples together.
STRIPS, STRIP_ROWS = 12, 24


def run_strip(evaluation: Evaluation, scored: Sequence[ScoredRun]) -> Strip:
    """The runs that a reader compares; fewer samples for more runs."""
    runs = in_strip(comparable(scored))
    shown = max(2, STRIP_ROWS // len(runs))
    return Strip(
        "From noise to image",
        [_trajectory(evaluation, run, shown) for run in runs],
        caption="The state after each step; a column has one noise level.",
    )


def in_strip(scored: Sequence[ScoredRun]) -> list[SamplerRun]:
    """The runs of the strip in their order: of each method one, then others while there is room.

    A method's run of the most steps comes first, because it shows most of a path.

    Args:
      scored: the compared runs, the reference teacher first.
    """
    first: dict[tuple[str, str, int, int], SamplerRun] = {}
    for run in (s.run for s in scored):
        if run.role == "student":
            kind = (run.method, run.plan.settings.variant, run.width, run.students)
            first.setdefault(kind, run)
    chosen = [scored[0].run, *first.values()]
    others = [s.run for s in scored if not any(s.run is run for run in chosen)]
    chosen += others[: max(0, STRIPS - len(chosen))]
    return [s.run for s in scored if any(s.run is run for run in chosen)]


def _trajectory(evaluation: Evaluation, run: SamplerRun, shown: int) -> Trajectory:
    count = evaluation.settings.evaluation.strip_images
    frames = picture_source(run, evaluation)(range(count), trajectory=True)
    levels = [float(i) for i in run.grid[::-1]]
    return Trajectory(run.label, frames[:, :shown], levels)
