"""TensorBoard events, written by tensorboardX: one TensorBoard run a stage."""

from collections.abc import Mapping
from importlib import import_module

from ddistill.runtime.loggers.protocol import LogTarget, Picture
from ddistill.typing import JsonRecord


class TensorBoard:
    """Events in WORKDIR/tensorboard/STAGE, so that stages and runs can be laid over one another.

    Events of steps after the one that a stage continues from are marked as outdated, and
    TensorBoard hides them.
    """

    def __init__(self, target: LogTarget):
        folder = target.workdir / "tensorboard" / target.stage
        self._writer = import_module("tensorboardX").SummaryWriter(
            str(folder), purge_step=target.step + 1 if target.step else None
        )

    def config(self, settings: JsonRecord) -> None:
        """Writes nothing: config.json of the run has the settings."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes each value under its name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Writes each picture under its name, and flushes the file so that it can be looked at."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
