"""evaluation.json: what an evaluation sampled, by which network, and what that network cost.

The file is written after results.json and says that sampling and scoring are finished; report.html
follows. `ddistill.compare` reads from it which samples belong to which rows of results.json.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from ddistill.errors import nearest
from ddistill.runtime.files import DamagedFile, read_object, write_text
from ddistill.runtime.schemas import OBJECT, TEXT, Schema, list_of

# What evaluation.json holds; `read_calls` looks at every call.
CALLS = Schema({"digest": TEXT, "calls": list_of(OBJECT)})
ROLES = ("full", "teacher", "student")


@dataclass(frozen=True)
class CallRecord:
    """One sampler run of one network.

    Attributes:
      key: its samples are in samples/KEY.npz.
      label: for people.
      method: a name of `vocabulary.METHODS`.
      variant: what a recipe other than the method's usual one is called; "" for the usual one.
      nfe: network evaluations an image.
      width: base channels of the network.
      role: "full" (the teacher at its full steps), "teacher" or "student".
      protocol: string of the `Protocol` of its scores.
      classes: classes of which the labels of the samples go round; 0 without labels.
      parameters: of the network.
      teacher_calls: teacher forward passes of one image each that distilling the network took, all
        stages from the teacher on; 0 for the teacher.
      updates: optimiser steps of students in these stages.
      seconds: their wall time, compilation left out.
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


def write_calls(path: str | os.PathLike, digest: str, calls: Sequence[CallRecord]) -> None:
    """Writes evaluation.json; `digest` is that of everything the evaluation depends on."""
    content = {"digest": digest, "calls": [asdict(call) for call in calls]}
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_calls(path: str | os.PathLike) -> list[CallRecord]:
    """Reads what `write_calls` wrote.

    Raises:
      ValueError: a file that is missing or of another form. The message names file and key.
    """
    try:
        content = read_object(path, CALLS)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    except DamagedFile as error:
        raise ValueError(f"{error}.") from None
    return [_call(item, f"{path}: call {i}") for i, item in enumerate(content["calls"])]


def _call(item: object, where: str) -> CallRecord:
    if not isinstance(item, dict):
        raise ValueError(f"{where}: expected an object, got {type(item).__name__}.")
    names = [field.name for field in fields(CallRecord)]
    for key in names:
        if key not in item:
            raise ValueError(f"{where}: key '{key}' is missing. Allowed: {', '.join(names)}.")
    for key in item:
        if key not in names:
            raise ValueError(
                f"{where}: key '{key}' is not known.{nearest(key, names)}"
                f" Allowed: {', '.join(names)}."
            )
    try:
        return CallRecord(**item)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
