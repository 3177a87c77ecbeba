"""The JSON files in the folders of a run and of its stages."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ddistill.runtime.schemas import (
    COUNT,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    Schema,
    list_of,
    map_of,
    maybe,
    object_of,
)


def shared_stages(run: Path) -> Path:
    """The folder of the stages that runs share, unless the user names another one.

    It is `shared` inside a packed run (`ddistill.commands.pack`), and beside other runs.
    """
    inside = run / "shared"
    return inside if inside.is_dir() else run.parent / "shared"


def _of_each_student(found: Mapping) -> str:
    for key in ("diverged", "teacher_calls_of_each"):
        count = len(found[key])
        if count != found["students"] and (count or key != "diverged"):
            return f"key '{key}' lists {count} students of {found['students']}"
    return ""


_COMMON = {
    "stage": TEXT,
    "digest": TEXT,
    "steps": WHOLE,
    "updates": WHOLE,
    "batch_size": COUNT,
    "students": WHOLE,
    "parameters": WHOLE,
    "teacher_calls": WHOLE,
    "train_seconds": NUMBER,
    "compile_seconds": NUMBER,
}
# complete.json of a stage that was trained or imported; a stage of no steps has no loss.
TRAINED = Schema(
    {
        **_COMMON,
        "ema": list_of(NUMBER),
        "teacher_calls_of_each": list_of(WHOLE),
        "diverged": list_of(WHOLE),
        "data_wait_seconds": NUMBER,
        "final_loss": maybe(NUMBER),
        "handed_on": WHOLE,
    },
    {"measured": list_of(map_of(NUMBER))},
    agree=_of_each_student,
)
# complete.json of a stage that has made pairs.
PAIRS = Schema({**_COMMON, "pairs": WHOLE, "provenance": OBJECT, "shards": map_of(TEXT, least=1)})


@dataclass(frozen=True)
class Manifest:
    """complete.json of a stage: what its training cost.

    Attributes:
      stage: name of the stage.
      digest: hash of its identity.
      steps: number of train steps.
      updates: number of optimiser steps of each student.
      batch_size: examples of a step.
      students: number of students.
      parameters: number of parameters of one student.
      teacher_calls: teacher forward passes of one image each, of all students.
      train_seconds: wall time, compilation left out.
      compile_seconds: wall time of compilation.
    """

    stage: str
    digest: str
    steps: int
    updates: int
    batch_size: int
    students: int
    parameters: int
    teacher_calls: int
    train_seconds: float
    compile_seconds: float

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The manifest in an object as its schema describes it; other keys are ignored."""
        # A field with a default is missing in the file of an older version.
        absent = {
            f.name: f.default
            for f in dataclasses.fields(cls)
            if f.default is not dataclasses.MISSING
        }
        own: dict[str, Any] = {f.name: {**absent, **found}[f.name] for f in dataclasses.fields(cls)}
        for name, value in own.items():
            if isinstance(value, list):
                own[name] = tuple(value)
        return cls(**own)

    def to_json(self) -> dict[str, object]:
        """An object as its schema describes it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TrainedManifest(Manifest):
    """complete.json of a stage that was trained or imported; see `TRAINED`.

    Attributes:
      ema: rates of its averages.
      teacher_calls_of_each: `teacher_calls` of each student.
      diverged: in a stage of many students, the step at which each diverged, or 0.
      data_wait_seconds: wall time of waiting for data.
      final_loss: mean loss of the last log interval; None or NaN where there is none.
      handed_on: step of the checkpoint that the stage hands on.
      measured: by student, the numbers that the objective measures of it after training
        (`Objective.diagnostics`); empty if it measures none.
    """

    ema: tuple[float, ...]
    teacher_calls_of_each: tuple[int, ...]
    diverged: tuple[int, ...]
    data_wait_seconds: float
    final_loss: float | None
    handed_on: int
    measured: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class PairsManifest(Manifest):
    """complete.json of a stage that has made pairs; see `PAIRS`.

    Attributes:
      pairs: number of pairs.
      provenance: teacher, guidance, sampler and levels that the pairs were made with.
      shards: by file name, the SHA-256 of the file.
    """

    pairs: int
    provenance: Mapping[str, object]
    shards: Mapping[str, str]


# stage.json; the records of checkpoints and older manifests name the digest alone.
OWNER = Schema({"digest": TEXT}, {"identity": OBJECT, "lineage": map_of(OBJECT)})

# stages.json of a run: by stage the digest, and the format of identities that it was made with.
STAGES = Schema({"format": WHOLE, "digests": map_of(TEXT, least=1)}, {"extensions": map_of(TEXT)})

# checkpoints/digests/STEP.json.
SEAL = Schema({"files": map_of(TEXT)}, {"loss": maybe(NUMBER), "shapes": map_of(list_of(WHOLE))})

_PAIR = list_of(NUMBER, 2, 2)
_FATAL = Kind("a list of two texts and a number", lambda x: _is_row(x, TEXT, TEXT, NUMBER))


def _is_row(value: object, *kinds: Kind) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(kinds)
        and all(kind.fits(x) for kind, x in zip(kinds, value, strict=True))
    )


def completed(record: Mapping[str, object], step: int) -> dict[str, Any]:
    """The record of the checkpoint at `step`, with empty values for keys that it lacks.

    The weights of such a checkpoint are complete. Times have no default, because the cost of the
    stage is reported from them. Values of a wrong kind stay as they are: see `RECORD`.
    """
    empty: dict[str, dict[str, object]] = {
        "scores": {"sums": {}, "last": {}},
        "alarms": {"step": step, "known": {}, "fatal": [], "born": []},
    }
    made: dict[str, Any] = {"loss": None, **empty, **record}
    for key, values in empty.items():
        if isinstance(made[key], dict):
            made[key] = {**values, **made[key]}
    return made


# The record of a checkpoint, from which a training goes on.
RECORD = Schema(
    {
        "clock": object_of(Schema({"train": NUMBER, "compile": NUMBER, "wait": NUMBER})),
        "loss": maybe(NUMBER),
        "scores": object_of(Schema({"sums": map_of(_PAIR), "last": map_of(NUMBER)})),
        "alarms": object_of(
            Schema(
                {
                    "step": maybe(WHOLE),
                    "known": map_of(OBJECT),
                    "fatal": list_of(_FATAL),
                    "born": list_of(list_of(TEXT, 2, 2)),
                }
            )
        ),
    }
)
