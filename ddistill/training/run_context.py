"""What every stage of a run is trained with."""

from dataclasses import dataclass, field

from ddistill.data import Dataset
from ddistill.runtime.console import Reporter
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import Settings
from ddistill.training.compiled import Programs
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
    """

    settings: Settings
    dataset: Dataset
    reporter: Reporter
    stop: StopRequest
    programs: Programs = field(default_factory=Programs)
    networks: Networks = field(default_factory=Networks)
