"""How long compilations and train steps took before, for estimates of the time that is left."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax

from ddistill.errors import CheckpointError
from ddistill.planning.plan import StagePlan
from ddistill.runtime.compilation import cache_folder
from ddistill.runtime.files import read_object_or_none, write_json
from ddistill.runtime.hosts import is_first
from ddistill.runtime.schemas import NUMBER, OBJECT, Schema
from ddistill.typing import JsonRecord

FILE = "timings.json"
# The settings of a stage that decide how fast its steps are. Levels and rates are arguments of a
# program, and how long a stage is trained does not change the time of a step.
_SETTINGS = (
    *("objective", "network", "prediction", "batch_size", "accumulate", "guidance", "conditional"),
    *("students", "ema", "optimizer", "optimizers"),
)
_RATES = ("learning_rate", "schedule", "warmup", "final_scale", "milestones", "decay")
_ENTRY = Schema(known={"step": NUMBER, "compile": OBJECT})


class Timings:
    """The durations of earlier trainings on machines of this kind, in one file.

    The file lies beside the compilation cache and is shared by runs. It serves messages alone: a
    file that cannot be read or written is the same as none.
    """

    def __init__(self, folder: Path | None = None):
        """Reads nothing yet.

        Args:
          folder: where the file is; None for no file, so that nothing is known.
        """
        self._path = None if folder is None else folder / FILE
        self._compiled: set[str] = set()

    def compile_seconds(self, plan: StagePlan, count: int) -> float | None:
        """The seconds that compiling `count` steps of a stage took last; None if unknown."""
        found = self._entry(plan).get("compile", {}).get(str(count))
        return float(found) if NUMBER.fits(found) else None

    def step_seconds(self, plan: StagePlan) -> float | None:
        """The seconds of a train step of a stage in its last training; None if unknown."""
        found = self._entry(plan).get("step")
        return None if found is None else float(found)

    def left(self, plans: Sequence[StagePlan]) -> float | None:
        """The seconds that training these stages takes; None if it is unknown for one of them."""
        total, compiled = 0.0, set(self._compiled)
        for plan in plans:
            step, key = self.step_seconds(plan), _key(plan)
            if step is None and plan.settings.steps:
                return None
            total += (step or 0.0) * plan.settings.steps
            if key not in compiled:
                times = self._entry(plan).get("compile", {}).values()
                total += sum(float(x) for x in times if NUMBER.fits(x))
                compiled.add(key)
        return total

    def note_compilation(self, plan: StagePlan, count: int, seconds: float) -> None:
        """Keeps the time of a compilation of `count` steps."""
        self._compiled.add(_key(plan))
        entry = self._entry(plan)
        self._write(plan, {**entry, "compile": {**entry.get("compile", {}), str(count): seconds}})

    def note_step(self, plan: StagePlan, seconds: float) -> None:
        """Keeps the mean time of a train step."""
        self._write(plan, {**self._entry(plan), "step": seconds})

    def _entry(self, plan: StagePlan) -> JsonRecord:
        found = self._read().get(_key(plan))
        return found if isinstance(found, dict) and not _ENTRY.problem(found) else {}

    def _read(self) -> JsonRecord:
        if self._path is None:
            return {}
        try:
            return read_object_or_none(self._path) or {}
        except (OSError, CheckpointError):
            return {}

    def _write(self, plan: StagePlan, entry: JsonRecord) -> None:
        if self._path is None or not is_first():
            return
        try:
            write_json(self._path, {**self._read(), _key(plan): entry})
        except (OSError, CheckpointError):
            return


class Pace:
    """The pace of a stage: measured in this process, or known from an earlier training.

    Attributes:
      known: seconds per step of an earlier training, or None.
    """

    def __init__(self, known: float | None = None):
        self.known = known
        self._steps, self._seconds = 0, 0.0

    def add(self, steps: int, seconds: float) -> None:
        """Adds steps that took so many seconds; compilations are left out."""
        if steps:
            self._steps, self._seconds = self._steps + steps, self._seconds + seconds

    @property
    def measured(self) -> float | None:
        """Seconds per step in this process; None before the first measurement."""
        return self._seconds / self._steps if self._steps else None

    def left(self, steps: int) -> float | None:
        """The seconds that so many steps will take; None if no pace is known."""
        pace = self.known if self.measured is None else self.measured
        return None if pace is None else pace * steps


def _key(plan: StagePlan) -> str:
    """Stages of equal keys compile equal programs or nearly so, on machines of one kind."""
    own = plan.identity.get("stage")
    own = own if isinstance(own, dict) else {}
    settings = {name: own.get(name) for name in _SETTINGS}
    devices = jax.devices()
    content = {
        "settings": _without_rates(settings),
        "shape": plan.image_shape,
        "teachers": _networks(plan),
        "devices": [devices[0].device_kind, len(devices), cache_folder(Path()).name],
        "jax": jax.__version__,
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_rates(settings: object) -> object:
    """Nested settings without those of learning rates."""
    if not isinstance(settings, dict):
        return settings
    return {k: _without_rates(v) for k, v in settings.items() if k not in _RATES}


def _networks(plan: StagePlan) -> list[object]:
    """The networks of the stages that a stage learns from."""
    found = []
    for name in (plan.settings.teacher_stage, plan.settings.classifier):
        stage = plan.lineage.get(name, {}).get("stage")
        found.append(stage.get("network") if isinstance(stage, dict) else None)
    return found
