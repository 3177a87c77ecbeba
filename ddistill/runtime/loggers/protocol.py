"""`Logger`: what receives the metrics and pictures of a training beside metrics.jsonl."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from ddistill.typing import JsonRecord

Picture = UInt8[np.ndarray, "H W 3"]


class Logger(Protocol):
    """Receives metrics, pictures and settings of one stage.

    A logger lives as long as a stage is trained, in the first process of a run alone. Its methods
    are called in the thread of the training, which waits for them. If one raises, a line on the
    console says so, the logger is closed and not called again in this run, and the training
    continues.
    """

    def config(self, settings: JsonRecord) -> None:
        """Receives the settings of the run, once and before anything else.

        Args:
          settings: nested settings of `ddistill.settings.Settings` as JSON holds them.
        """
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Receives the metrics of a log interval.

        Args:
          step: the number of train steps done; larger in every call.
          values: by name, the means over the interval. "NAME/K" is the metric of student K.
        """
        ...

    def images(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Receives pictures.

        Args:
          step: the number of train steps done.
          pictures: by name, `[H, W, 3]` uint8.
        """
        ...

    def close(self) -> None:
        """Is called once, after the last step, a stop or an error."""
        ...


@dataclass(frozen=True)
class LogTarget:
    """What a logger is opened for.

    Attributes:
      run: the name of the run, `config.name`.
      stage: the name of the stage.
      workdir: the folder of the run; a logger may write into a folder of its own there.
      step: the step that the stage continues from; 0 for a new one. An earlier process that was
        killed may have logged later steps, which are logged again with the same values.
    """

    run: str
    stage: str
    workdir: Path
    step: int


@dataclass(frozen=True)
class LoggerKind:
    """How loggers of one name are opened.

    Attributes:
      open: makes the logger of a stage.
      package: the module that it needs; "" for none.
      extra: the extra of ddistill that installs the package; "" for none.
    """

    open: Callable[[LogTarget], Logger]
    package: str = ""
    extra: str = ""
