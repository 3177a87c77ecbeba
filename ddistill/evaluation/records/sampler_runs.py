"""evaluation.json: the sampler runs of an evaluation, with the cost of the sampled networks.

The file is written after results.json and marks sampling and scoring as finished; report.html
follows. `ddistill.compare` finds in it the samples that belong to the rows of results.json.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from ddistill.evaluation.records.strict import record_of
from ddistill.runtime.files import DamagedFile, read_object, write_text
from ddistill.runtime.schemas import OBJECT, TEXT, Schema, list_of

# The form of evaluation.json; `read_sampler_runs` checks every run of the list.
SCHEMA = Schema({"digest": TEXT, "sampler_runs": list_of(OBJECT)})
# The key of the list in files of earlier versions.
_EARLIER_KEY = "calls"
REFERENCE_TEACHER = "reference_teacher"
ROLES = (REFERENCE_TEACHER, "teacher", "student")


class EarlierVersion(ValueError):
    """An evaluation.json of an earlier version; the message says how to update it."""


@dataclass(frozen=True)
class SamplerRunRecord:
    """One sampler run of one network.

    Attributes:
      key: the samples are in samples/KEY.npz.
      label: name in tables and plots.
      method: a name of `names.METHODS`.
      variant: name of a recipe that differs from the method's default; "" for the default.
      nfe: network evaluations per image.
      width: base channels of the network.
      role: "reference_teacher" (the teacher at its full number of steps), "teacher" or "student".
      protocol: string of the `Protocol` of the scores.
      classes: number of classes through which the labels of the samples cycle; 0 without labels.
      parameters: number of parameters of the network.
      teacher_calls: teacher forward passes (of one image each) that the distillation of the
        network took, over all stages from the teacher on; 0 for the teacher.
      updates: optimiser steps of students in these stages.
      seconds: wall-clock time of these stages without compilation.
    """

    key: str
    label: str
    method: str
    variant: str
    nfe: int
    width: int
    role: str
    protocol: str
    classes: int
    parameters: int
    teacher_calls: int
    updates: int
    seconds: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            allowed = (int, float) if field.type is float else field.type
            if not isinstance(value, allowed) or isinstance(value, bool):  # type: ignore[arg-type]
                raise ValueError(f"{field.name}={value!r} must be of type {field.type.__name__}.")  # type: ignore[union-attr]
        if self.role not in ROLES:
            raise ValueError(f"role={self.role!r} must be one of {', '.join(ROLES)}.")


def write_sampler_runs(
    path: str | os.PathLike, digest: str, runs: Sequence[SamplerRunRecord]
) -> None:
    """Writes evaluation.json; `digest` covers everything that the evaluation depends on."""
    content = {"digest": digest, "sampler_runs": [asdict(run) for run in runs]}
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_sampler_runs(path: str | os.PathLike) -> list[SamplerRunRecord]:
    """Reads the file that `write_sampler_runs` wrote.

    Raises:
      EarlierVersion: an earlier version wrote the file.
      ValueError: the file is missing or has another form. The message names file and key.
    """
    try:
        if _EARLIER_KEY in read_object(path):
            raise EarlierVersion(
                f"{path} was written by an earlier version, which trained the run's stages in "
                "another way: train the run again in another --workdir, or read it with the "
                "version that wrote it."
            )
        content = read_object(path, SCHEMA)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    except DamagedFile as error:
        raise ValueError(f"{error}.") from None
    return [
        record_of(SamplerRunRecord, item, f"{path}: sampler run {i}")
        for i, item in enumerate(content["sampler_runs"])
    ]
