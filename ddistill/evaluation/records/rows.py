"""The rows of results.json: one measured number each."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.records.names import check_name
from ddistill.evaluation.records.protocol import RESAMPLED, is_finite, is_int, variant
from ddistill.evaluation.records.strict import record_of
from ddistill.runtime.files import read_text, write_text
from ddistill.text import printable


@dataclass(frozen=True)
class Row:
    """One measured number. The fields are exactly the keys of results.json.

    Attributes:
      experiment: name of the experiment, for example "sfddm_digits".
      method: a name of `names.METHODS`.
      data: data set, for example "digits" or "cifar10".
      nfe: network evaluations per image; 0 for real data.
      students: number of students K; 0 for the teacher and for real data.
      width: base channels of the sampled network; 0 for real data.
      seed: seed of the run.
      metric: a name of `names.METRICS`.
      value: the score, finite.
      protocol: string of a `Protocol`.
      train_seconds: wall-clock time of the distillation of the sampled network, over all stages
        from the teacher on; 0 for the teacher and for real data.
      teacher_calls: teacher forward passes (of one image each) that the distillation took.
      command: the command that reproduces the number, without paths of the machine
        (`environment.command_string`).
      machine: processor, cores, accelerator (`environment.machine_string`).
      low, high: 95 % interval of the value over draws of the samples; None without an interval.
      tuned_on: seeds on which the settings were chosen.
      warnings: why the scores of the run may mean little, on one line; "" without a warning.
      reference_teacher: sampler and steps of the teacher's images that the metrics "..._to_teacher"
        compare with, for example "ddim-256"; with LPIPS also the hash of its weights. "" for real
        data and for rows of earlier versions.
    """

    experiment: str
    method: str
    data: str
    nfe: int
    students: int
    width: int
    seed: int
    metric: str
    value: float
    protocol: str
    train_seconds: float
    teacher_calls: int
    command: str
    machine: str
    low: float | None = None
    high: float | None = None
    tuned_on: tuple[int, ...] = ()
    warnings: str = ""
    reference_teacher: str = ""

    def __post_init__(self) -> None:
        self._check_additions()
        for field in fields(self)[:_REQUIRED]:
            value = getattr(self, field.name)
            if field.type is str:
                if not isinstance(value, str) or not value.strip() or "\n" in value:
                    raise ValueError(f"{field.name}={value!r} must be one line of text.")
            elif field.type is int:
                if not is_int(value) or value < 0:
                    raise ValueError(f"{field.name}={value!r} must be an integer of at least 0.")
            elif not is_finite(value):
                raise ValueError(
                    f"{field.name}={value!r} must be a finite number"
                    f" (experiment '{self.experiment}', method '{self.method}', metric"
                    f" '{self.metric}', nfe {self.nfe}); a diverged run has no score."
                )
        check_name("method", self.method)
        check_name("metric", self.metric)

    def _check_additions(self) -> None:
        object.__setattr__(self, "tuned_on", tuple(self.tuned_on))  # a list in JSON
        if not all(is_int(seed) and seed >= 0 for seed in self.tuned_on):
            raise ValueError(f"tuned_on={self.tuned_on!r} must be seeds, integers of at least 0.")
        for name in ("warnings", "reference_teacher"):
            value = getattr(self, name)
            if not isinstance(value, str) or "\n" in value:
                raise ValueError(f"{name}={value!r} must be one line of text.")
        ends = self.low, self.high
        if ends != (None, None) and not (
            is_finite(self.low) and is_finite(self.high) and self.low <= self.value <= self.high  # type: ignore[operator]
        ):
            raise ValueError(
                f"low={self.low!r}, high={self.high!r} must be an interval with value={self.value} "
                "in it, or both None."
            )

    @property
    def identity(self) -> tuple:
        """The fields that make two rows the same measurement; a newer row replaces the older one.

        The hash of the feature network and the resampling are not part of it: a measurement with a
        newly trained feature network or with other subsets must replace the old numbers.
        """
        return (
            self.experiment,
            self.data,
            self.method,
            self.students,
            self.width,
            self.nfe,
            self.metric,
            self.seed,
            variant(self.protocol, drop=RESAMPLED),
        )


@dataclass(frozen=True)
class RowFacts:
    """The fields of `Row` that the scores of one sampler share; see there."""

    experiment: str
    method: str
    data: str
    nfe: int
    students: int
    width: int
    seed: int
    protocol: str
    train_seconds: float
    teacher_calls: int
    command: str
    machine: str
    tuned_on: tuple[int, ...] = ()
    warnings: str = ""
    reference_teacher: str = ""


def rows_from_scores(scores: Mapping[str, float | Estimate], facts: RowFacts) -> list[Row]:
    """Makes one row for each metric of `scores`.

    Text of `facts` becomes `printable`, because other text cannot be written.
    """
    shared: dict[str, Any] = {
        k: printable(v) if isinstance(v, str) else v for k, v in asdict(facts).items()
    }
    rows = []
    for name, score in scores.items():
        own = score if isinstance(score, Estimate) else Estimate(float(score))
        rows.append(Row(metric=name, value=own.value, low=own.low, high=own.high, **shared))
    return rows


def write_rows(path: str | os.PathLike, rows: Iterable[Row], grouped: bool = False) -> None:
    """Writes rows as JSON, one per line, atomically: a reader sees the old file or the new one.

    Args:
      path: the file.
      rows: any rows.
      grouped: write rows that differ in metric, value and interval alone as one object, with
        "scores" in place of these: by metric the value, or [value, low, high]. A tenth of the size.

    Raises:
      ValueError: two rows have the same identity.
    """
    rows = list(rows)
    seen: dict[tuple, Row] = {}
    for row in rows:
        if row.identity in seen:
            raise ValueError(
                f"{path}: two rows measure the same: {_short(seen[row.identity])} with values"
                f" {seen[row.identity].value} and {row.value}."
            )
        seen[row.identity] = row
    items = _grouped(rows) if grouped else [_plain(row) for row in rows]
    lines = [json.dumps(item, allow_nan=False, ensure_ascii=False) for item in items]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def read_rows(path: str | os.PathLike) -> list[Row]:
    """Reads rows written by `write_rows`.

    Raises:
      ValueError: the file is missing or holds no list of rows, or a row has a missing or unknown
        key or a value that is not allowed. The message names file, row and key.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}). A finished run writes results.json into"
            " its folder; give that folder."
        ) from error
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}.") from error
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected a list of rows, got {type(data).__name__}.")
    items = [item for group in data for item in _apart(group)]
    return [record_of(Row, item, f"{path}: row {i}") for i, item in enumerate(items)]


def _grouped(rows: Iterable[Row]) -> list[dict[str, object]]:
    """The rows for JSON; those with the same facts become one object, where the first one was."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        shared = _plain(row)
        metric, ends = shared.pop("metric"), (shared.pop("low", None), shared.pop("high", None))
        value = shared.pop("value")
        group = groups.setdefault(json.dumps(shared), {**shared, "scores": {}})
        group["scores"][metric] = value if ends == (None, None) else [value, *ends]
    return list(groups.values())


def _apart(group: object) -> list[object]:
    """The rows of an object with "scores"; any other object is one row."""
    if not isinstance(group, dict) or not isinstance(group.get("scores"), dict):
        return [group]
    shared = {key: value for key, value in group.items() if key != "scores"}
    rows: list[object] = []
    for metric, score in group["scores"].items():
        # A list of another length has unknown entries, which the check of a row refuses.
        values = score if isinstance(score, list) else [score]
        names = ("value", "low", "high", *map(str, range(3, len(values))))
        rows.append({**shared, "metric": metric, **dict(zip(names, values))})
    return rows


def _plain(row: Row) -> dict[str, object]:
    """The row for JSON, without fields that have their default."""
    defaults = {field.name: field.default for field in fields(Row)}
    return {key: value for key, value in asdict(row).items() if value != defaults[key]}


def _short(row: Row) -> str:
    return (
        f"experiment '{row.experiment}', data '{row.data}', method '{row.method}', nfe {row.nfe},"
        f" students {row.students}, width {row.width}, seed {row.seed}, metric '{row.metric}'"
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no score")


_REQUIRED = sum(field.default is MISSING for field in fields(Row))
