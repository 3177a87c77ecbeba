"""The second call of benchmarks/gpu_day.py: trains the stages that fit a time, and scores them."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from gpu_day_stages import CLASSIFIER_STEPS, SHARES, SIZES, Size, settings
from timing import machine

from ddistill import data, recipes
from ddistill.data import Dataset
from ddistill.experiment import run
from ddistill.runtime.compilation import cache_folder
from ddistill.runtime.files import write_json
from ddistill.runtime.sharding import use_cores_as_devices
from ddistill.settings import Settings

# Of the budget: for samples, scores and the report, and for copying the results.
EVALUATION, COPY = 0.22, 0.02
PROBE = 24  # updates of the teacher that are timed before its length is chosen
PER_CLASS = 5000  # images of a class that are taken from a tar
# What is copied to the results, beside gpu_day.json.
FILES = ("results.json", "report.html", "evaluation.json", "metrics.jsonl", "config.json")
FILES += ("samples.png", "fd_vs_nfe.png")


@dataclass
class Progress:
    """What gpu_day.json holds.

    Attributes:
      machine: device and versions.
      budget: seconds.
      stages: by name: updates, seconds, compile_seconds, and "state": "complete", "stopped",
        "failed" or "left out", with a reason.
      seconds: wall time by part.
    """

    machine: str
    budget: float
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def failed(self) -> list[str]:
        """The stages that are not complete, with the reason."""
        return [
            f"stage {name}: {found['state']}, {found.get('reason', '')}"
            for name, found in self.stages.items()
            if found["state"] != "complete"
        ]


class Day:
    """One call: the stages that are complete, their lengths, and the time that is left.

    Args:
      size: "full" or "tiny".
      folder: of the images.
      dataset: its training images.
      out: folder of the results.
      times: (start, budget): `time.monotonic()` at the start of the call, seconds.
    """

    def __init__(
        self, size: str, folder: Path, dataset: Dataset, out: Path, times: tuple[float, float]
    ):
        self.size: Size = SIZES[size]
        self.folder, self.dataset, self.out = folder, dataset, out
        self.start, self.budget = times
        self.work = out / "run"
        self.progress = Progress(machine(), self.budget)
        self.steps: dict[str, int] = {"classifier": min(CLASSIFIER_STEPS, self.size.most)}
        # Seconds of one forward pass of the teacher on one image, and of compiling one program.
        self.pace, self.compile = 0.0, 0.0

    def left(self, reserve: float) -> float:
        """Seconds until the end of the budget, without a share `reserve` of it."""
        return self.start + self.budget * (1 - reserve) - time.monotonic()

    def settings(self, names: tuple[str, ...] = (), scored: bool = False) -> Settings:
        """The experiment with the lengths chosen so far; with `names`, these stages alone.

        A stage that is trained alone may have no teacher to evaluate, so that only `scored`
        settings have an evaluation.
        """
        classes = len(self.dataset.class_names)
        made = settings(self.size, str(self.folder), classes, self.steps)
        if not names:
            return made
        stages = {name: made.stages[name] for name in names}
        judge = "classifier" if "classifier" in names else ""
        evaluation = dataclasses.replace(made.evaluation, classifier=judge, enabled=scored)
        return dataclasses.replace(made, stages=stages, pipeline=names, evaluation=evaluation)

    def run(self, made: Settings, stage: str, seconds: float, work: Path | None = None) -> str:
        """Runs a stage or the evaluation; returns "" or why it is not complete."""
        timer = threading.Timer(max(1.0, seconds), os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        before = signal.signal(signal.SIGTERM, lambda *_: None)  # outside of a run
        timer.start()
        work = work or self.work
        try:
            config = recipes.to_config(made)
            command = f"benchmarks/gpu_day.sh train ({stage})"
            status = run(config, work, work / "shared", stage, command, self.dataset)
            return f"stopped after {seconds:.0f} s" if status else ""
        except Exception as error:
            # Whatever it is, the other stages and the results come first.
            traceback.print_exc()
            return f"{type(error).__name__}: {error}".splitlines()[0][:300]
        finally:
            timer.cancel()
            signal.signal(signal.SIGTERM, before)

    def manifest(self, work: Path, stage: str) -> Mapping[str, Any]:
        """complete.json of a stage."""
        return json.loads((work / "stages" / stage / "complete.json").read_text())

    def probe(self) -> None:
        """Times some updates of the teacher."""
        work = self.out / "probe"
        self.steps["teacher"] = min(PROBE, self.size.most)
        made = self.settings(("teacher",))
        reason = self.run(made, "teacher", 0.4 * self.left(EVALUATION), work)
        if reason:
            self.progress.stages["probe"] = {"state": "failed", "reason": reason}
            return
        found = self.manifest(work, "teacher")
        self.pace = found["train_seconds"] / found["steps"]
        self.pace /= SHARES["teacher"].calls * self.size.batch
        self.compile = found["compile_seconds"]
        shutil.rmtree(work, ignore_errors=True)

    def length(self, name: str, stages: list[str]) -> int:
        """Updates of a stage that fit its share of the time left.

        Args:
          name: the stage.
          stages: the stages that are still to be trained, `name` first.
        """
        share = SHARES[name]
        if not share.calls:
            return self.steps.get(name, 1)
        allowed = self.left(EVALUATION) * share.weight / sum(SHARES[s].weight for s in stages)
        each = share.calls * self.size.batch * self.pace or 1.0
        wanted = int((allowed - self.compile) / each)
        return max(min(share.least, self.size.most), min(self.size.most, wanted))

    def train(self) -> None:
        """All stages, one after the other; stages whose sources are missing are left out."""
        self.probe()
        stages = list(self.settings().pipeline)
        for i, name in enumerate(stages):
            missing = [s for s in self.settings().stages[name].sources if not self.is_complete(s)]
            left = self.left(EVALUATION)
            if missing or left < self.compile:
                reason = f"needs {', '.join(missing)}" if missing else f"{left:.0f} s are left"
                self.note(name, {"state": "left out", "reason": reason})
                continue
            self.steps[name] = self.length(name, stages[i:])
            begun = time.monotonic()
            made = self.settings((*self.complete(), name))
            reason = self.run(made, name, left)
            self.progress.seconds[name] = round(time.monotonic() - begun, 1)
            if reason:
                state = "stopped" if reason.startswith("stopped") else "failed"
                self.note(name, {"state": state, "reason": reason, "updates": self.steps[name]})
                continue
            found = self.manifest(self.work, name)
            kept = ("steps", "batch_size", "train_seconds", "compile_seconds", "parameters")
            self.note(name, {"state": "complete", **{key: found[key] for key in kept}})

    def complete(self) -> tuple[str, ...]:
        """The stages that have been trained to their end, in order."""
        return tuple(name for name in self.settings().pipeline if self.is_complete(name))

    def is_complete(self, name: str) -> bool:
        """Whether a stage has been trained to its end."""
        return self.progress.stages.get(name, {}).get("state") == "complete"

    def note(self, name: str, found: dict[str, Any]) -> None:
        """Notes what became of a stage, on disk at once."""
        self.progress.stages[name] = found
        self.copy()

    def evaluate(self) -> None:
        """Samples, scores and the report of all stages that are complete."""
        names = self.complete()
        if "teacher" not in names:
            self.progress.stages["evaluation"] = {"state": "left out", "reason": "no teacher"}
            return
        begun = time.monotonic()
        reason = self.run(self.settings(names, scored=True), "evaluate", self.left(COPY))
        self.progress.seconds["evaluation"] = round(time.monotonic() - begun, 1)
        state = "failed" if reason else "complete"
        self.note("evaluation", {"state": state, "reason": reason})

    def copy(self) -> None:
        """Writes gpu_day.json and copies what there is of the results."""
        write_json(self.out / "gpu_day.json", dataclasses.asdict(self.progress))
        for name in FILES:
            if (self.work / name).exists():
                shutil.copy(self.work / name, self.out / name)


def train(source: Path, out: Path, budget: float, size: str) -> list[str]:
    """Trains a teacher and students on images, scores them, and writes the results to `out`.

    The lengths of the stages are chosen so that everything ends within the budget. At its end the
    process ends too, with what is on disk.

    Args:
      source: a folder of images with one sub-folder a class, or a tar of one.
      out: folder of the results, which is made.
      budget: seconds of wall time.
      size: a key of `SIZES`.

    Returns:
      What is not complete, with the reason.
    """
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    use_cores_as_devices()
    with tempfile.TemporaryDirectory() as scratch:
        folder = source if source.is_dir() else unpack(source, Path(scratch), PER_CLASS)
        if not jax.config.jax_compilation_cache_dir:
            # The stages of a chain are one program, but each has a run of its own here.
            cache = cache_folder(Path(scratch) / "xla")
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        images = {"name": "folder", "path": str(folder), "image_size": SIZES[size].side}
        day = Day(size, folder, data.load(images, "train"), out, (start, budget))
        day.progress.seconds["data"] = round(time.monotonic() - start, 1)
        watch = threading.Timer(day.left(0.0), _end, (day,))
        watch.daemon = True
        watch.start()
        day.train()
        day.evaluate()
        watch.cancel()
        day.copy()
    return day.progress.failed()


def _end(day: Day) -> None:
    """Ends the process at the end of the budget, with the results that there are."""
    day.progress.stages["evaluation"] = {"state": "stopped", "reason": "the time is over"}
    day.copy()
    print(f"stopped after {day.budget:.0f} s; results so far are in {day.out}", flush=True)
    sys.stdout.flush()
    os._exit(1)


def unpack(archive: Path, folder: Path, per_class: int) -> Path:
    """Unpacks at most `per_class` images of each folder of a tar; returns the folder of all."""
    root = folder / "images"
    taken: Counter[str] = Counter()
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            parent = str(Path(member.name).parent)
            if member.isfile() and taken[parent] < per_class:
                taken[parent] += 1
                tar.extract(member, root, filter="data")
    return root
