"""Callbacks of a training: functions of the user that are called while stages are trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ddistill.planning.manifests import Manifest


@dataclass(frozen=True)
class StageInfo:
    """The stage that is being trained.

    Attributes:
      name: its key in `config.stages`.
      number: its place among the stages of the run, from 1.
      count: the number of stages of the run.
      steps: the number of its train steps.
      start: the step that it continues from; 0 for a new stage.
      folder: its folder, with metrics.jsonl and checkpoints.
      stop: requests a clean stop: the training saves a checkpoint after the current step and ends,
        and the next run continues from there.
    """

    name: str
    number: int
    count: int
    steps: int
    start: int
    folder: Path
    stop: Callable[[], None]


class Callback(Protocol):
    """Is told of the progress of a training; subclasses define the methods that they need.

    All methods are called in the thread of the training, which waits for them, and of several
    processes in the first one alone. An exception ends the training and is raised by
    `ddistill.train`; the newest checkpoint is kept, and the next call continues from it.
    """

    def on_stage_begin(self, stage: StageInfo) -> None:
        """Is called before the first step of a stage that is trained or continued in this call.

        Stages that are complete already are not reported.
        """

    def on_log(self, stage: StageInfo, step: int, values: Mapping[str, float]) -> None:
        """Is called at every log interval, after metrics.jsonl has its line.

        Stages that make pairs have no metrics.

        Args:
          stage: the stage.
          step: the number of train steps done; larger in every call for a stage.
          values: by name, the means over the interval, as in metrics.jsonl.
        """

    def on_stage_end(self, stage: StageInfo, manifest: Manifest) -> None:
        """Is called once the stage is complete and its manifest is on disk.

        A stage that was stopped or failed does not reach this call.
        """
