"""The rows of results.json: one measured number each."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ddistill.errors import nearest
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.records.names import check_name
from ddistill.evaluation.records.protocol import RESAMPLED, _is_finite, _is_int, variant
from ddistill.runtime.files import read_text, write_text
from ddistill.text import printable


@dataclass(frozen=True)
class Row:
    """One measured number. The fields are exactly the keys of results.json.

    Attributes:
      experiment: name of the experiment, for example "sfddm_digits".
      method: a name of `vocabulary.METHODS`.
      data: data set, for example "digits" or "cifar10".
      nfe: network evaluations an image; 0 for real data.
      students: number of students K; 0 where there is none (teacher, real data).
      width: base channels of the sampled network; 0 for real data.
      seed: seed of the run.
      metric: a name of `vocabulary.METRICS`.
      value: finite.
      protocol: string of a `Protocol`.
      train_seconds: wall time of distilling what was sampled, from the teacher on through all
        stages between; 0 where nothing was.
      teacher_calls: teacher forward passes (of one image each) that the distillation took.
      command: what to type to get it, without paths of a machine (`machine.command_string`).
      machine: processor, cores, accelerator (`machine.machine_string`).
      low, high: 95 % interval of the value over other samples; None where there is none.
      tuned_on: seeds on which the settings were chosen; numbers of other seeds are fresh.
      warnings: why the run's scores may mean little, one line; "" for no reason.
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

    def __post_init__(self) -> None:
        self._check_additions()
        for field in fields(self)[:_REQUIRED]:
            value = getattr(self, field.name)
            if field.type is str:
                if not isinstance(value, str) or not value.strip() or "\n" in value:
                    raise ValueError(f"{field.name}={value!r} must be one line of text.")
            elif field.type is int:
                if not _is_int(value) or value < 0:
                    raise ValueError(f"{field.name}={value!r} must be an integer of at least 0.")
            elif not _is_finite(value):
                raise ValueError(
                    f"{field.name}={value!r} must be a finite number"
                    f" (experiment '{self.experiment}', method '{self.method}', metric"
                    f" '{self.metric}', nfe {self.nfe}); a diverged run has no score."
                )
        check_name("method", self.method)
        check_name("metric", self.metric)

    def _check_additions(self) -> None:
        object.__setattr__(self, "tuned_on", tuple(self.tuned_on))  # a list in JSON
        if not all(_is_int(seed) and seed >= 0 for seed in self.tuned_on):
            raise ValueError(f"tuned_on={self.tuned_on!r} must be seeds, integers of at least 0.")
        if not isinstance(self.warnings, str) or "\n" in self.warnings:
            raise ValueError(f"warnings={self.warnings!r} must be one line of text.")
        ends = self.low, self.high
        if ends != (None, None) and not (
            _is_finite(self.low) and _is_finite(self.high) and self.low <= self.value <= self.high  # type: ignore[operator]
        ):
            raise ValueError(
                f"low={self.low!r}, high={self.high!r} must be an interval with value={self.value} "
                "in it, or both None."
            )

    @property
    def identity(self) -> tuple:
        """What makes two rows the same measurement, so that the newer one replaces the older.

        The hash of the feature network and the resampling are left out: training the network anew,
        or scoring with other subsets, and measuring again must replace the old numbers, not stand
        beside them.
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


def rows_from_scores(scores: Mapping[str, float | Estimate], **common: Any) -> list[Row]:
    """One row a metric: `common` holds all keys of `Row` but metric, value and interval.

    Texts of `common` become `printable`, because a row of other text cannot be written.
    """
    common = {k: printable(v) if isinstance(v, str) else v for k, v in common.items()}
    rows = []
    for name, score in scores.items():
        own = score if isinstance(score, Estimate) else Estimate(float(score))
        rows.append(Row(metric=name, value=own.value, low=own.low, high=own.high, **common))
    return rows


def write_rows(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Writes rows as JSON, one a line, atomically: a reader sees the old file or the new one.

    Raises:
      ValueError: two rows of the same identity, which only one of could be kept.
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
    lines = [json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) for row in rows]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def read_rows(path: str | os.PathLike) -> list[Row]:
    """Reads rows written by `write_rows`.

    Raises:
      ValueError: a file that is missing or no list of rows; a row with a missing or unknown key
        or a value that is not allowed. The message names file, row and key.
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
    return [_row(item, f"{path}: row {i}") for i, item in enumerate(data)]


def _row(item: object, where: str) -> Row:
    if not isinstance(item, dict):
        raise ValueError(f"{where}: expected an object, got {type(item).__name__}.")
    names = [field.name for field in fields(Row)]
    for key in names[:_REQUIRED]:
        if key not in item:
            raise ValueError(f"{where}: key '{key}' is missing.")
    for key in item:
        if key not in names:
            raise ValueError(
                f"{where}: key '{key}' is not known.{nearest(key, names)}"
                f" Allowed: {', '.join(names)}."
            )
    try:
        return Row(**item)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _plain(row: Row) -> dict[str, Any]:
    """The row for JSON; additions that say nothing are left out."""
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
