"""Weights & Biases: one W&B run a stage, grouped by the folder of the run."""

import json
import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from ddistill.runtime.files import read_object_or_none, write_text
from ddistill.runtime.loggers.protocol import LogTarget, Picture
from ddistill.runtime.schemas import ANY
from ddistill.typing import JsonRecord


class WeightsAndBiases:
    """A run of wandb that the next process continues.

    The environment variables of wandb apply: WANDB_PROJECT ("ddistill" without it), WANDB_MODE
    (`offline` writes to WORKDIR/wandb and sends nothing), WANDB_API_KEY. The id of the run is kept
    in WORKDIR/wandb/STAGE.json. wandb drops values of steps that it has already.
    """

    def __init__(self, target: LogTarget):
        self._wandb = import_module("wandb")
        folder = target.workdir / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            name=f"{target.workdir.name}/{target.stage}",
            group=target.workdir.name,
            job_type=target.stage,
            tags=[target.run[:64]],
            id=_run_id(folder / f"{target.stage}.json", new=target.step == 0),
            resume="allow",
            reinit="create_new",
            dir=str(target.workdir),
            settings=self._wandb.Settings(silent=True, console="off"),
            **_project(),
        )

    def config(self, settings: JsonRecord) -> None:
        """Makes the settings the config of the W&B run."""
        self._run.config.update(settings, allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs all values at the step."""
        self._run.log(dict(values), step=step)

    def images(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Logs all pictures at the step."""
        made = {name: self._wandb.Image(picture) for name, picture in pictures.items()}
        self._run.log(made, step=step)

    def close(self) -> None:
        """Finishes the W&B run; waits until it is written or sent."""
        self._run.finish()


def _project() -> dict[str, str]:
    """The project as an argument, unless wandb reads it from the environment."""
    return {} if os.environ.get("WANDB_PROJECT") else {"project": "ddistill"}


def _run_id(path: Path, new: bool) -> str:
    """The id of the stage's W&B run; a new one for a stage that starts anew."""
    noted = None if new else read_object_or_none(path, ANY)
    if noted is not None and isinstance(noted.get("id"), str):
        return noted["id"]
    made = secrets.token_hex(6)
    write_text(path, json.dumps({"id": made}))
    return made
