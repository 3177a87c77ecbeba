"""Loggers of a training: TensorBoard, Weights & Biases, MLflow, and loggers of users.

`config.training.loggers` lists their names. metrics.jsonl of a stage (`runtime/metrics_log.py`) is
written whatever it lists, because resuming and reports read it. docs/logging.md describes them.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from ddistill.runtime.hosts import is_first
from ddistill.runtime.loggers.mlflow_runs import MLflow
from ddistill.runtime.loggers.protocol import Logger, LoggerKind, LogTarget, Picture
from ddistill.runtime.loggers.tensorboard import TensorBoard
from ddistill.runtime.loggers.weights_and_biases import WeightsAndBiases
from ddistill.settings import TrainingSettings
from ddistill.text import one_line
from ddistill.typing import JsonRecord

__all__ = ["JSONL", "LOGGERS", "LogTarget", "Logger", "LoggerKind", "RunLoggers", "StageLoggers"]

# The name of metrics.jsonl in `config.training.loggers`, where it changes nothing.
JSONL = "jsonl"

LOGGERS: dict[str, LoggerKind] = {
    "tensorboard": LoggerKind(TensorBoard, "tensorboardX", "tensorboard"),
    "wandb": LoggerKind(WeightsAndBiases, "wandb", "wandb"),
    "mlflow": LoggerKind(MLflow, "mlflow", "mlflow"),
}


class RunLoggers:
    """The loggers of a run: opened for each of its stages, and switched off where they fail."""

    def __init__(
        self,
        names: Iterable[str] = (),
        run: str = "",
        workdir: Path = Path(),
        settings: JsonRecord | None = None,
        say: Callable[[str], None] = print,
    ):
        """Opens nothing, and reports loggers with a package that is not installed.

        A default logger without its package is left out without a report.

        Args:
          names: `config.training.loggers`, all of them known.
          run: the name of the run.
          workdir: its folder.
          settings: its settings, for `Logger.config`.
          say: receives one line for each logger that is switched off.
        """
        self._run, self._workdir, self._settings = run, workdir, settings or {}
        self._say = say
        self._on = [n for n in dict.fromkeys(names) if n != JSONL] if is_first() else []
        for name in list(self._on):
            kind = LOGGERS[name]
            if kind.package and find_spec(kind.package) is None:
                self._on.remove(name)
                if name in TrainingSettings().loggers:
                    continue  # by default, and not by the user's wish
                say(
                    f"note: no logs for {name}, because {kind.package} is not installed: "
                    f"pip install 'ddistill[{kind.extra}]', or set config.training.loggers."
                )

    def open(self, stage: str, step: int) -> "StageLoggers":
        """The loggers of a stage that starts at `step`; never raises an `Exception`."""
        target = LogTarget(self._run, stage, self._workdir, step)
        opened: dict[str, Logger] = {}
        for name in list(self._on):
            try:
                opened[name] = LOGGERS[name].open(target)
                opened[name].config(self._settings)
            except Exception as error:
                self._switch_off(name, error)
                _close_quietly(opened.pop(name, None))
        return StageLoggers(opened, self._switch_off)

    def _switch_off(self, name: str, error: Exception) -> None:
        if name in self._on:
            self._on.remove(name)
            reason = one_line(str(error)) or type(error).__name__
            self._say(
                f"warning: the logger {name} is off for the rest of this run, and the training "
                f"continues: {reason}"
            )


class StageLoggers:
    """The loggers of one stage as one; a logger that raises is closed and called no more."""

    def __init__(self, opened: Mapping[str, Logger], switch_off: Callable[[str, Exception], None]):
        self._opened, self._switch_off = dict(opened), switch_off

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Passes metrics to every logger."""
        self._each(lambda logger: logger.scalars(step, values))

    def images(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Passes pictures to every logger."""
        self._each(lambda logger: logger.images(step, pictures))

    def close(self) -> None:
        """Closes every logger."""
        self._each(lambda logger: logger.close())
        self._opened = {}

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._opened.items()):
            try:
                call(logger)
            except Exception as error:
                del self._opened[name]
                self._switch_off(name, error)
                _close_quietly(logger)


def _close_quietly(logger: Logger | None) -> None:
    """Closes a logger that has failed already and was reported."""
    if logger is None:
        return
    try:
        logger.close()
    except Exception:
        return
