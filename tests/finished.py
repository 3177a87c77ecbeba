"""A tiny run of `ddistill.train`: its config file, its folder, and what callbacks were told."""

import dataclasses
from pathlib import Path
from typing import Any

from runs import one_stage

import ddistill
from ddistill.parsing import to_plain
from ddistill.settings import GridSettings, Settings, StageSettings
from ddistill.trained_run import TrainedRun

CONFIG_FILE = """
from ml_collections import ConfigDict
import finished

def get_config(variant=""):
    return ConfigDict(finished.plain(finished.tiny()))
"""


def tiny(**training: Any) -> Settings:
    """A teacher of 16 levels and an SFDDM student of 4, without classes and evaluation."""
    made = one_stage(**training)
    teacher = dataclasses.replace(made.stages["teacher"], shared=True, ema=(0.9,))
    student = StageSettings(
        {"name": "sfddm", "substeps": 1},
        teacher="teacher",
        init="teacher",
        steps=20,
        batch_size=8,
        grid=GridSettings(steps=4),
        method="sfddm",
    )
    stages = {"teacher": teacher, "student": student}
    return dataclasses.replace(made, stages=stages, pipeline=tuple(stages))


def plain(settings: Settings) -> dict[str, Any]:
    return to_plain(dataclasses.asdict(settings))


class Told(ddistill.Callback):
    """Keeps what it is told; stops or raises at a step."""

    def __init__(self, stops: int = 0, raises: int = 0):
        self.calls: list[tuple] = []
        self.stops, self.raises = stops, raises

    def on_stage_begin(self, stage):
        self.calls.append(("begin", stage.name, stage.number, stage.count, stage.start))

    def on_log(self, stage, step, values):
        self.calls.append(("log", stage.name, step, values["loss"]))
        if step == self.stops:
            stage.stop()
        if step == self.raises:
            raise ZeroDivisionError("mine")

    def on_stage_end(self, stage, manifest):
        self.calls.append(
            ("end", stage.name, manifest.steps, (stage.folder / "complete.json").exists())
        )


@dataclasses.dataclass
class Finished:
    """A finished run and its folder `FOLDER/runs/sfddm_digits`."""

    folder: Path
    run: TrainedRun
    told: Told


def train(folder: Path) -> Finished:
    """Trains the run from a config file in `FOLDER/configs`."""
    (folder / "configs").mkdir()
    file = folder / "configs" / "sfddm_digits.py"
    file.write_text(CONFIG_FILE)
    told = Told()
    workdir = folder / "runs" / "sfddm_digits"
    run = ddistill.train(f"{file}:smoke", workdir=workdir, callbacks=[told], quiet=True)
    return Finished(folder, run, told)
