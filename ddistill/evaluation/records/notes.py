"""Notes on tables of several runs: warnings, seeds used for tuning, and earlier versions."""

from collections.abc import Iterable, Sequence

from ddistill.evaluation.records.names import METHODS, METRICS
from ddistill.evaluation.records.rows import Row


def warning_notes(rows: Iterable[Row]) -> list[str]:
    """Lists each warning of the runs once, with the runs that have it."""
    runs: dict[str, dict[tuple[str, int], None]] = {}
    for row in rows:
        if row.warnings:
            run = row.experiment.partition("/")[0], row.seed
            runs.setdefault(row.warnings, {})[run] = None
    return [
        f"Warning, {'; '.join(f'{name}, seed {seed}' for name, seed in found)}: {text}"
        for text, found in runs.items()
    ]


def tuning_notes(rows: Iterable[Row]) -> list[str]:
    """Lists experiments with settings that were tuned, with the seeds of tuning and of the rows."""
    tuned: dict[str, set[int]] = {}
    shown: dict[str, set[int]] = {}
    for row in rows:
        name = row.experiment.partition("/")[0]
        tuned.setdefault(name, set()).update(row.tuned_on)
        shown.setdefault(name, set()).add(row.seed)
    said: dict[tuple[str, str], list[str]] = {}
    for name in shown:
        if tuned[name]:
            key = listed(tuned[name]), listed(shown[name])
            said.setdefault(key, []).append(name)
    return [
        f"{', '.join(names)}: settings tuned on seed{_s(on)} {on}; these seeds: {of}."
        for (on, of), names in said.items()
    ]


EARLIER = (
    "Scored by an earlier version, without intervals{more}: give the command of the run again with "
    "--stage=evaluate, which scores its samples again."
)


def resampled(row: Row) -> bool:
    """Whether the protocol of a row describes the resampling; earlier versions had none."""
    return any(part.startswith("subset_seed=") for part in row.protocol.split())


def comparable_rows(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Drops floors of earlier versions with another number of images than the samples.

    Earlier versions scored all test images for the floor.

    Returns:
      (rows, notes): the remaining rows and a note on earlier versions, if any.
    """
    if all(resampled(row) for row in rows if METRICS[row.metric].sampled):
        return list(rows), []
    counts = {_count(row) for row in rows if METHODS[row.method].role != "real"}
    kept = [
        row
        for row in rows
        if METHODS[row.method].role != "real" or resampled(row) or counts <= {_count(row)}
    ]
    more = (
        "; its floor has another number of images and is left out" if len(kept) < len(rows) else ""
    )
    return kept, [EARLIER.format(more=more)]


def _count(row: Row) -> str:
    return next((p for p in row.protocol.split() if p.startswith("samples=")), "")


def fresh_rows(rows: Sequence[Row], seeds: Sequence[int] = ()) -> list[Row]:
    """Selects the rows of `seeds`; by default, of seeds that were not used for tuning.

    If all seeds were used for tuning, all rows remain.
    """
    if seeds:
        return [row for row in rows if row.seed in seeds]
    tuned = {seed for row in rows for seed in row.tuned_on}
    return [row for row in rows if row.seed not in tuned] or list(rows)


def listed(numbers: Iterable[int]) -> str:
    """Sorted numbers as text: "0, 1, 2"."""
    return ", ".join(map(str, sorted(numbers)))


def _s(text: str) -> str:
    return "s" if "," in text else ""
