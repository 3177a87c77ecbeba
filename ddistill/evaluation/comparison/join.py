"""Finished runs beside one another: rows joined over seeds, with what every sampler cost.

    comparison = compare(runs)           # checked, or refused with a message
    comparison.scores[entry][nfe, "fd"]  # mean and spread over seeds

Runs of one experiment with different seeds are one line; runs of different experiments stand
beside each other. A sampler that several experiments have measured with the same result, as they
do with the teacher that they share, is one line and counts once.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ddistill.evaluation.records.aggregate import (
    Entry,
    Scores,
    Stat,
    aggregate,
    entry_of,
    labels,
    stat_of,
)
from ddistill.evaluation.records.names import METHODS
from ddistill.evaluation.records.notes import EARLIER, tuning_notes, warning_notes
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.records.sampler_runs import CallRecord

# A measurement that differs each time, so that it does not tell one network from another.
_TIMED = "ms_per_image"
_COSTS = ("parameters", "teacher_calls", "updates", "seconds")

Cell = tuple[int, str]  # nfe, metric
Point = tuple[Entry, int]  # entry, nfe


@dataclass(frozen=True)
class FinishedRun:
    """What the folder of a finished run holds.

    Attributes:
      folder: as the user gave it; for messages and as the source of the numbers.
      rows: of results.json; at least one sampled and scored.
      calls: of evaluation.json.
      config: of config.json.
      identity: of its training images (`Dataset.identity`); empty where it is not noted.
      sources: by stage, the hash of the files of another project that it starts from.
    """

    folder: str
    rows: tuple[Row, ...]
    calls: tuple[CallRecord, ...]
    config: Mapping[str, object]
    identity: Mapping[str, object] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def experiment(self) -> str:
        """Name of the experiment, variants left out."""
        return self.rows[0].experiment.partition("/")[0]

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.rows[0].seed

    @property
    def protocol(self) -> Protocol:
        """The protocol of the full teacher; its samplers share all parts that runs must share."""
        return Protocol.parse(self.calls[0].protocol)

    @property
    def title(self) -> str:
        """The run in a message."""
        return f"{self.folder} ({self.experiment}, seed {self.seed})"


@dataclass(frozen=True)
class Source:
    """The samples of one call: samples/KEY.npz of a run, and their scores by metric."""

    run: FinishedRun
    call: CallRecord
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Several runs as one set of numbers.

    Attributes:
      runs: as they were given.
      rows: of all runs, each measurement once; `experiment` tells apart only what must be.
      scores: statistics over seeds.
      names: label of every entry.
      seeds: seeds of every number.
      costs: (entry, nfe) -> parameters, teacher_calls, updates, seconds -> statistics over seeds.
      sources: (entry, nfe) -> where its samples are, by seed.
      full: the teachers at their full steps: what students are held against.
      notes: what a reader must know: scores that mean little, seeds that differ or that settings
        were tuned on, teachers that differ.
    """

    runs: tuple[FinishedRun, ...]
    rows: tuple[Row, ...]
    scores: Scores
    names: Mapping[Entry, str]
    seeds: Mapping[tuple[Entry, int, str], tuple[int, ...]]
    costs: Mapping[Point, Mapping[str, Stat]]
    sources: Mapping[Point, Mapping[int, Source]]
    full: tuple[Point, ...]
    notes: tuple[str, ...]

    @property
    def points(self) -> list[Point]:
        """All (entry, nfe) in the order of tables."""
        return [(e, n) for e in self.scores for n in sorted({nfe for nfe, _ in self.scores[e]})]

    @property
    def experiments(self) -> list[str]:
        """Names of the experiments, in the order in which they were given."""
        return list(dict.fromkeys(run.experiment for run in self.runs))


def compare(
    runs: Sequence[FinishedRun], teachers: Mapping[str, object] | None = None
) -> Comparison:
    """Joins runs that `comparable.check_runs` has found to be comparable.

    Args:
      runs: in order.
      teachers: by experiment, what its teacher is learnt from; experiments that are not in it, or
        with None, have teachers of their own unless measurements show that they share one.
    """
    named = _named(runs, teachers or {})
    rows = _once(renamed for _, _, renamed in named)
    scores = aggregate(rows)
    seeds: dict[tuple[Entry, int, str], set[int]] = {}
    for row in rows:
        seeds.setdefault((entry_of(row), row.nfe, row.metric), set()).add(row.seed)
    names = labels(scores)
    sources = _sources(named)
    full = [p for p, found in sources.items() if any(s.call.role == "full" for s in found.values())]
    return Comparison(
        runs=tuple(runs),
        rows=tuple(rows),
        scores=scores,
        names=names,
        seeds={key: tuple(sorted(found)) for key, found in seeds.items()},
        costs={point: _cost(found) for point, found in sources.items()},
        sources=sources,
        full=tuple(sorted(full)),
        notes=(
            *warning_notes(row for run in runs for row in run.rows),
            *_earlier_notes(runs),
            *_seed_notes(rows, names),
            *tuning_notes(row for run in runs for row in run.rows),
            *_teacher_notes(rows, names),
            *_feature_notes(runs),
        ),
    )


def _named(
    runs: Sequence[FinishedRun], teachers: Mapping[str, object]
) -> list[tuple[FinishedRun, Row, Row]]:
    """Every row with its run and, third, with an `experiment` that holds only what tells it apart.

    Two experiments may hold the same method: measured on one network, which both have found on
    disk, or on two. The numbers tell which.
    """
    lines: dict[tuple, dict[str, list[Row]]] = {}
    order = list(dict.fromkeys(run.experiment for run in runs))
    for run in runs:
        for row in run.rows:
            lines.setdefault(_line(row), {}).setdefault(run.experiment, []).append(row)
    group: dict[tuple, dict[str, str]] = {}
    for line, by_experiment in lines.items():
        same = teachers if line == ("teacher",) else {}
        group[line] = _groups([e for e in order if e in by_experiment], by_experiment, same)
    named = []
    for run in runs:
        for row in run.rows:
            groups = group[_line(row)]
            several = METHODS[row.method].role != "real" and len(set(groups.values())) > 1
            name = groups[run.experiment] if several else ""
            recipe = ": ".join(part for part in (name, _recipe(row)) if part)
            # The same data may have another name in another run.
            name, data = f"comparison/{recipe}".rstrip("/"), runs[0].rows[0].data
            named.append((run, row, replace(row, experiment=name, data=data)))
    return named


def _line(row: Row) -> tuple:
    """What tells samplers of different networks apart; all samplers of a teacher are one."""
    role = METHODS[row.method].role
    return ("teacher",) if role == "teacher" else (role, replace(entry_of(row), order=0))


def _recipe(row: Row) -> str:
    return row.experiment.partition("/")[2]


def _groups(
    experiments: Sequence[str], rows: Mapping[str, Sequence[Row]], settings: Mapping[str, object]
) -> dict[str, str]:
    """Experiment -> first experiment that measured the same network.

    Args:
      experiments: in order.
      rows: of each.
      settings: what decides between experiments that have no measurement in common, for example
        because they have no seed in common; experiments that are not in it differ then.
    """
    cells = {
        e: {(entry_of(r), r.nfe, r.metric, r.seed): r.value for r in rows[e] if r.metric != _TIMED}
        for e in experiments
    }

    def same(a: str, b: str) -> bool:
        common = cells[a].keys() & cells[b].keys()
        if common:
            return all(math.isclose(cells[a][k], cells[b][k], rel_tol=1e-6) for k in common)
        return settings.get(a) is not None and settings.get(a) == settings.get(b)

    found: dict[str, str] = {}
    for name in experiments:
        heads = dict.fromkeys(found.values())
        fitting = (h for h in heads if all(same(name, e) for e in found if found[e] == h))
        found[name] = next(fitting, name)
    return found


def _once(rows: Iterable[Row]) -> list[Row]:
    """One row for each measurement; of times, which differ, the mean."""
    table: dict[tuple, list[Row]] = {}
    for row in rows:
        table.setdefault((entry_of(row), row.nfe, row.metric, row.seed), []).append(row)
    return [
        replace(same[0], value=math.fsum(row.value for row in same) / len(same))
        if same[0].metric == _TIMED
        else same[0]
        for same in table.values()
    ]


def _sources(named: Iterable[tuple[FinishedRun, Row, Row]]) -> dict[Point, dict[int, Source]]:
    found: dict[Point, dict[int, Source]] = {}
    scores: dict[tuple[Point, int], dict[str, float]] = {}
    for run, row, renamed in named:
        if METHODS[row.method].role == "real":
            continue
        point = entry_of(renamed), row.nfe
        scores.setdefault((point, row.seed), {}).setdefault(row.metric, row.value)
        by_seed = found.setdefault(point, {})
        if row.seed not in by_seed:
            by_seed[row.seed] = Source(run, _call_of(run, row), scores[point, row.seed])
    return found


def _call_of(run: FinishedRun, row: Row) -> CallRecord:
    key = (row.method, _recipe(row), row.nfe, row.width, row.protocol)
    for call in run.calls:
        if (call.method, call.variant, call.nfe, call.width, call.protocol) == key:
            return call
    raise ValueError(
        f"{run.folder}: evaluation.json has no call for {row.method} at NFE {row.nfe} of "
        "results.json. Delete evaluation.json and give the run's command again."
    )


def _cost(sources: Mapping[int, Source]) -> dict[str, Stat]:
    return {
        name: stat_of({seed: [float(getattr(s.call, name))] for seed, s in sources.items()})
        for name in _COSTS
    }


def _earlier_notes(runs: Sequence[FinishedRun]) -> list[str]:
    if all(run.protocol.count is not None for run in runs):
        return []
    return [EARLIER.format(more="; its floor may be of another number of images than the samples")]


def _seed_notes(rows: Iterable[Row], names: Mapping[Entry, str]) -> list[str]:
    """Which method has which seeds, if they differ."""
    seeds: dict[Entry, dict[int, set[int]]] = {}
    for row in rows:
        seeds.setdefault(entry_of(row), {}).setdefault(row.nfe, set()).add(row.seed)
    if len({tuple(sorted(s)) for by_nfe in seeds.values() for s in by_nfe.values()}) <= 1:
        return []
    said: dict[str, list[str]] = {}
    for entry in sorted(seeds):
        by_nfe = {nfe: _listed(found) for nfe, found in seeds[entry].items()}
        for text in dict.fromkeys(by_nfe.values()):
            counts = sorted(nfe for nfe, own in by_nfe.items() if own == text)
            where = f" at NFE {_listed(counts)}" if len(set(by_nfe.values())) > 1 else ""
            said.setdefault(text, []).append(names[entry] + where)
    most = max(said, key=lambda text: len(said[text]))
    parts = [f"{', '.join(who)}: {text}" for text, who in said.items() if text != most]
    return [f"Seeds are not the same for all methods. {'; '.join(parts)}; all others: {most}."]


def _teacher_notes(rows: Iterable[Row], names: Mapping[Entry, str]) -> list[str]:
    teachers = {entry_of(row) for row in rows} & {e for e in names if e.role == "teacher"}
    if len({e.recipe for e in teachers}) <= 1:
        return []
    listed = ", ".join(names[e] for e in sorted(teachers))
    return [f"The runs do not share one teacher, so each stands by itself: {listed}."]


def _feature_notes(runs: Sequence[FinishedRun]) -> list[str]:
    if len({run.protocol.features_hash for run in runs}) <= 1:
        return []
    return [
        "Every seed has a feature network of its own, so the spread between seeds of a score is "
        "that of trainings and of what scores them."
    ]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
