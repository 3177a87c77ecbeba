"""What every stage of a run is trained with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ddistill.data import Dataset
from ddistill.planning.plan import StagePlan
from ddistill.runtime.console import Reporter
from ddistill.runtime.hosts import is_first
from ddistill.runtime.interrupt import StopRequest
from ddistill.runtime.loggers import RunLoggers
from ddistill.settings import Settings
from ddistill.training.callbacks import Callback, StageInfo
from ddistill.training.compiled import Programs
from ddistill.training.previews import PreviewMaker
from ddistill.training.timings import Timings
from ddistill.training.trained import Networks


@dataclass(frozen=True)
class RunContext:
    """What every stage of a run is trained with.

    Attributes:
      settings: the run's settings.
      dataset: the training images.
      reporter: shows progress to the user.
      stop: the request to stop, polled between steps and stages.
      programs: the compiled train steps, shared by stages of equal programs.
      networks: the trained networks of complete stages.
      loggers: receive metrics and previews beside metrics.jsonl.
      previews: samples stages that are being trained; None for no previews.
      timings: durations of earlier runs.
      callbacks: of the user.
    """

    settings: Settings
    dataset: Dataset
    reporter: Reporter
    stop: StopRequest
    programs: Programs = field(default_factory=Programs)
    networks: Networks = field(default_factory=Networks)
    loggers: RunLoggers = field(default_factory=RunLoggers)
    previews: PreviewMaker | None = None
    timings: Timings = field(default_factory=Timings)
    callbacks: Sequence[Callback] = ()

    def call_back(self, call: Callable[[Callback], None]) -> None:
        """Calls every callback, in the first process of a run alone."""
        if is_first():
            for callback in self.callbacks:
                call(callback)


@dataclass(frozen=True)
class StagePlace:
    """The place of a stage among the stages of a run.

    Attributes:
      number: from 1.
      count: the number of stages.
      later: the stages after it that are still to be trained.
    """

    number: int = 1
    count: int = 1
    later: tuple[StagePlan, ...] = ()

    def title(self, plan: StagePlan) -> str:
        """The title of the stage's progress."""
        return f"stage {self.number} of {self.count}, {plan.name}"

    def info(self, plan: StagePlan, start: int, stop: StopRequest) -> StageInfo:
        """What callbacks are told of the stage, which continues from the step `start`."""
        steps = plan.settings.steps
        request = partial(stop.request, "a callback")
        return StageInfo(plan.name, self.number, self.count, steps, start, plan.folder, request)


# A run of one stage.
ALONE = StagePlace()
