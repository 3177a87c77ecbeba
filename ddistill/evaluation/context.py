"""The inputs of an evaluation, passed as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddistill.data import Dataset
from ddistill.evaluation.metrics.protocols import PromptedParts
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.planning.lineage import Cost, cost, distillation
from ddistill.planning.plan import StagePlan
from ddistill.runtime.console import Reporter
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import Settings
from ddistill.training.trained import Networks


@dataclass(frozen=True)
class Evaluation:
    """Everything that the evaluation of a run reads and reports to.

    Attributes:
      settings: the settings of the run.
      plans: the stages of the run, all complete.
      dataset: the training images.
      networks: the trained networks; they are read from disk unless they are in memory.
      workdir: the folder of the run, which receives samples, scores and the report.
      reporter: receives progress and messages.
      stop: the request to stop, checked between batches.
      command: the command of the run, shown in the report.
      defaults: the settings of the config file without flags; the report marks settings that
        differ. Empty if they are not known.
      prompted: the published protocol of the run, for protocol strings; None without one.
    """

    settings: Settings
    plans: list[StagePlan]
    dataset: Dataset
    networks: Networks
    workdir: Path
    reporter: Reporter
    stop: StopRequest
    command: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)
    prompted: PromptedParts | None = None

    def cost_of(self, run: SamplerRun) -> Cost:
        """The cost of distilling the sampled network, over all stages from the teacher on."""
        stages = distillation(run.plan, self.settings.evaluation.teacher, self.plans)
        return cost(stages, run.student)
