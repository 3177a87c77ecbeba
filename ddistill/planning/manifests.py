"""What the files of a stage's folder hold: whose it is, how far it came and what it cost."""

from collections.abc import Mapping
from typing import Any

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


def _of_each_student(found: Mapping[str, Any]) -> str:
    for key in ("diverged", "teacher_calls_of_each"):
        count = len(found[key])
        if count != found["students"] and (count or key != "diverged"):
            return f"key '{key}' lists {count} students of {found['students']}"
    return ""


_COMMON = {
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
# complete.json of a stage that was trained or taken over; a stage of no steps has no loss.
TRAINED = Schema(
    {
        **_COMMON,
        "teacher_calls_of_each": list_of(WHOLE),
        "diverged": list_of(WHOLE),
        "final_loss": maybe(NUMBER),
        "handed_on": WHOLE,
    },
    agree=_of_each_student,
)
# complete.json of a stage that has made pairs.
PAIRS = Schema({**_COMMON, "pairs": WHOLE, "shards": map_of(TEXT, least=1)})

# stage.json; the records of checkpoints and older manifests name the digest alone.
OWNER = Schema({"digest": TEXT}, {"identity": OBJECT, "lineage": map_of(OBJECT)})

# stages.json of a run: by stage the digest, and the format of identities that it was made with.
STAGES = Schema({"format": WHOLE, "digests": map_of(TEXT, least=1)})

# checkpoints/digests/STEP.json.
SEAL = Schema({"files": map_of(TEXT)}, {"loss": maybe(NUMBER)})

_PAIR = list_of(NUMBER, 2, 2)
_FATAL = Kind("a list of two texts and a number", lambda x: _is_row(x, TEXT, TEXT, NUMBER))


def _is_row(value: object, *kinds: Kind) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(kinds)
        and all(kind.fits(x) for kind, x in zip(kinds, value, strict=True))
    )


def completed(record: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The record of the checkpoint at `step`, with empty values for keys that it lacks.

    The weights of such a checkpoint are whole. Times are not made up, because the cost of the stage
    is reported from them. Values of a wrong kind stay as they are: see `RECORD`.
    """
    empty: dict[str, dict[str, Any]] = {
        "scores": {"sums": {}, "last": {}},
        "alarms": {"step": step, "known": {}, "fatal": [], "born": []},
    }
    made = {"loss": None, **empty, **record}
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
