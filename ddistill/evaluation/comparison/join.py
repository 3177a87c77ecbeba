"""Joins the rows of finished runs over seeds, with the cost of every sampled network.

    comparison = join_runs(runs)         # after `checks.check_runs`
    comparison.scores[entry][nfe, "fd"]  # mean and spread over seeds

Runs of one experiment with different seeds share one line of a table; runs of different experiments
have separate lines. Several experiments that measured the same network, such as a shared
teacher, share one line, and its numbers count once.
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
from ddistill.evaluation.records.names import METHODS, METRICS
from ddistill.evaluation.records.notes import EARLIER, tuning_notes, warning_notes
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.records.sampler_runs import REFERENCE_TEACHER, SamplerRunRecord

# A measurement that varies between evaluations of one network, so it does not identify a network.
_TIMED = "ms_per_image"
_COSTS = ("parameters", "teacher_calls", "updates", "seconds")

Point = tuple[Entry, int]  # entry, nfe


@dataclass(frozen=True)
class FinishedRun:
    """The contents of the folder of a finished run.

    Attributes:
      folder: the folder as the user gave it.
      rows: the rows of results.json, at least one of them a score of samples.
      sampler_runs: the records of evaluation.json, the reference teacher first.
      config: the contents of config.json.
      identity: `Dataset.identity` of the training images; empty if the run did not record it.
      sources: stage -> hash of the imported files from which it starts.
    """

    folder: str
    rows: tuple[Row, ...]
    sampler_runs: tuple[SamplerRunRecord, ...]
    config: Mapping[str, object]
    identity: Mapping[str, object] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def experiment(self) -> str:
        """Name of the experiment without the variant."""
        return self.rows[0].experiment.partition("/")[0]

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.rows[0].seed

    @property
    def protocol(self) -> Protocol:
        """The protocol of the reference teacher."""
        return Protocol.parse(self.sampler_runs[0].protocol)

    @property
    def title(self) -> str:
        """Name of the run in messages."""
        return f"{self.folder} ({self.experiment}, seed {self.seed})"


@dataclass(frozen=True)
class Source:
    """The samples of one sampler run.

    Attributes:
      run: the run; the samples are in its samples/KEY.npz.
      sampler_run: the record of the sampler run.
      scores: value by metric.
    """

    run: FinishedRun
    sampler_run: SamplerRunRecord
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """The joined numbers of several runs.

    Attributes:
      runs: the runs in the order of the command line.
      rows: the rows of all runs, each measurement once; `experiment` holds only the part of the
        name that distinguishes networks.
      scores: statistics over seeds.
      names: entry -> label.
      seeds: (entry, nfe, metric) -> seeds of the number.
      costs: (entry, nfe) -> parameters, teacher_calls, updates, seconds -> statistics over seeds.
      sources: (entry, nfe) -> seed -> samples.
      references: the reference teachers.
      notes: warnings about scores, unequal seeds, seeds used for tuning, and different teachers.
    """

    runs: tuple[FinishedRun, ...]
    rows: tuple[Row, ...]
    scores: Scores
    names: Mapping[Entry, str]
    seeds: Mapping[tuple[Entry, int, str], tuple[int, ...]]
    costs: Mapping[Point, Mapping[str, Stat]]
    sources: Mapping[Point, Mapping[int, Source]]
    references: tuple[Point, ...]
    notes: tuple[str, ...]

    @property
    def points(self) -> list[Point]:
        """All (entry, nfe) in the order of tables."""
        return [(e, n) for e in self.scores for n in sorted({nfe for nfe, _ in self.scores[e]})]

    @property
    def experiments(self) -> list[str]:
        """Names of the experiments, in the order in which they were given."""
        return list(dict.fromkeys(run.experiment for run in self.runs))


def join_runs(
    runs: Sequence[FinishedRun], teachers: Mapping[str, object] | None = None
) -> Comparison:
    """Joins runs that passed `checks.check_runs`.

    Args:
      runs: the runs, in order.
      teachers: experiment -> settings of its teacher. Without equal settings, two experiments share
        a teacher only if they have equal measurements of it.
    """
    named = _named(runs, teachers or {})
    rows = _once(renamed for _, _, renamed in named)
    scores = aggregate(rows)
    seeds: dict[tuple[Entry, int, str], set[int]] = {}
    for row in rows:
        seeds.setdefault((entry_of(row), row.nfe, row.metric), set()).add(row.seed)
    names = labels(scores)
    sources = _sources(named)
    references = [
        point
        for point, found in sources.items()
        if any(s.sampler_run.role == REFERENCE_TEACHER for s in found.values())
    ]
    return Comparison(
        runs=tuple(runs),
        rows=tuple(rows),
        scores=scores,
        names=names,
        seeds={key: tuple(sorted(found)) for key, found in seeds.items()},
        costs={point: _cost(found) for point, found in sources.items()},
        sources=sources,
        references=tuple(sorted(references)),
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
    """Returns (run, row, renamed row) for every row.

    `experiment` of a renamed row is equal for measurements of one network. Two experiments may have
    measured the same method on one network from the shared cache or on two networks; `_groups`
    decides by the numbers.
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
            # Equal data sets may have different names in two runs.
            name, data = f"comparison/{recipe}".rstrip("/"), runs[0].rows[0].data
            named.append((run, row, replace(row, experiment=name, data=data)))
    return named


def _line(row: Row) -> tuple:
    """The group of rows that may measure one network; the samplers of a teacher are one group."""
    role = METHODS[row.method].role
    return ("teacher",) if role == "teacher" else (role, replace(entry_of(row), order=0))


def _recipe(row: Row) -> str:
    return row.experiment.partition("/")[2]


def _groups(
    experiments: Sequence[str], rows: Mapping[str, Sequence[Row]], settings: Mapping[str, object]
) -> dict[str, str]:
    """Returns experiment -> first experiment that measured the same network.

    Args:
      experiments: names, in order.
      rows: experiment -> its rows.
      settings: experiment -> settings. Equal settings mean one network for experiments without a
        common measurement, for example because they have no common seed.
    """
    # Metrics without a column may depend on settings that are in no protocol.
    cells = {
        e: {
            (entry_of(r), r.nfe, r.metric, r.seed): r.value
            for r in rows[e]
            if r.metric != _TIMED and METRICS[r.metric].column
        }
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
    """Returns one row for each measurement, with the mean of repeated times."""
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
            by_seed[row.seed] = Source(run, _sampler_run_of(run, row), scores[point, row.seed])
    return found


def _sampler_run_of(run: FinishedRun, row: Row) -> SamplerRunRecord:
    key = (row.method, _recipe(row), row.nfe, row.width, row.protocol)
    for found in run.sampler_runs:
        if (found.method, found.variant, found.nfe, found.width, found.protocol) == key:
            return found
    raise ValueError(
        f"{run.folder}: evaluation.json has no sampler run for {row.method} at NFE {row.nfe} of "
        "results.json. Delete evaluation.json and give the run's command again."
    )


def _cost(sources: Mapping[int, Source]) -> dict[str, Stat]:
    return {
        name: stat_of({seed: [float(getattr(s.sampler_run, name))] for seed, s in sources.items()})
        for name in _COSTS
    }


def _earlier_notes(runs: Sequence[FinishedRun]) -> list[str]:
    if all(run.protocol.count is not None for run in runs):
        return []
    return [EARLIER.format(more="; the floor may have another number of images than the samples")]


def _seed_notes(rows: Iterable[Row], names: Mapping[Entry, str]) -> list[str]:
    """The seeds of each method, if they differ."""
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
    return [f"Not all methods have the same seeds. {'; '.join(parts)}; all others: {most}."]


def _teacher_notes(rows: Iterable[Row], names: Mapping[Entry, str]) -> list[str]:
    teachers = {entry_of(row) for row in rows} & {e for e in names if e.role == "teacher"}
    if len({e.recipe for e in teachers}) <= 1:
        return []
    listed = ", ".join(names[e] for e in sorted(teachers))
    return [f"The runs do not share one teacher, so each teacher has its own line: {listed}."]


def _feature_notes(runs: Sequence[FinishedRun]) -> list[str]:
    if len({run.protocol.features_hash for run in runs}) <= 1:
        return []
    return [
        "Every seed has its own feature network, so the spread over seeds includes the spread "
        "between feature networks."
    ]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
