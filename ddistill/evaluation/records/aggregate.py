"""Statistics over seeds of the rows of results.json, for tables and plots."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtrit

from ddistill.evaluation.records.names import METHODS, METRICS
from ddistill.evaluation.records.protocol import variant
from ddistill.evaluation.records.rows import Row

# Parts of a protocol that may differ within one line of a table.
_NOT_VARIANT = ("nfe", "noise_seed")


@dataclass(frozen=True)
class Stat:
    """Statistics of a score over seeds.

    Attributes:
      mean: mean over seeds.
      spread: sample standard deviation over seeds; None for one seed.
      seeds: number of seeds.
      low, high: 95 % interval over draws of the samples, for one seed; otherwise None.
      values: (seed, value), sorted by seed.
    """

    mean: float
    spread: float | None
    seeds: int
    low: float | None = None
    high: float | None = None
    values: tuple[tuple[int, float], ...] = ()

    @property
    def half_width(self) -> float | None:
        """Half width of the 95 % interval: Student's t over seeds, or over samples for one seed."""
        if self.spread is not None:
            return _quantile(self.seeds) * self.spread / math.sqrt(self.seeds)
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, order=True)
class Entry:
    """One line of a table: the identity of a row without nfe, metric and seed.

    `recipe` is the part of the name of an experiment after a slash: "sfddm_digits/random_init" is a
    variant of "sfddm_digits" and is in the same table.
    """

    order: int
    method: str
    recipe: str
    students: int
    width: int
    variant: str

    @property
    def role(self) -> str:
        """ "teacher", "student" or "real"."""
        return METHODS[self.method].role


Scores = dict[Entry, dict[tuple[int, str], Stat]]


def experiments(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Groups rows by (experiment without recipe, data), in alphabetical order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.experiment.partition("/")[0], row.data), []).append(row)
    return dict(sorted(groups.items()))


def entry_of(row: Row) -> Entry:
    """The line of a table for a row."""
    order = list(METHODS).index(row.method)
    if METHODS[row.method].role == "real":
        order = len(METHODS)  # the floor is the last line
    text = variant(row.protocol, drop=_NOT_VARIANT)
    recipe = row.experiment.partition("/")[2]
    return Entry(order, row.method, recipe, row.students, row.width, text)


def aggregate(rows: Iterable[Row]) -> Scores:
    """Computes entry -> (nfe, metric) -> Stat, with entries in the order of `METHODS`.

    Noise banks of one seed are averaged first, so that the spread is over trainings.
    """
    cells: dict[Entry, dict[tuple[int, str], list[Row]]] = {}
    for row in rows:
        cells.setdefault(entry_of(row), {}).setdefault((row.nfe, row.metric), []).append(row)
    return {
        entry: {key: _stat_of_rows(found) for key, found in sorted(cells[entry].items())}
        for entry in sorted(cells)
    }


def _stat_of_rows(rows: Sequence[Row]) -> Stat:
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row.seed, []).append(row.value)
    stat = stat_of(seeds)
    return replace(stat, low=rows[0].low, high=rows[0].high) if len(rows) == 1 else stat


def labels(entries: Iterable[Entry]) -> dict[Entry, str]:
    """Short, distinct names; students, width and protocol appear only if entries differ in them."""
    entries = list(entries)
    names = {}
    for entry in entries:
        label = METHODS[entry.method].label
        if entry.recipe:
            label += f", {entry.recipe.replace('_', ' ')}"
        if entry.students > 1:
            label += f", {entry.students} students"
        same = [e for e in entries if e.method == entry.method]
        if len({e.width for e in same}) > 1:
            label += f", width {entry.width}"
        twins = [e for e in same if replace(e, variant=entry.variant) == entry]
        if len(twins) > 1:
            others = set.intersection(*(set(e.variant.split()) for e in twins))
            label += f" ({' '.join(p for p in entry.variant.split() if p not in others)})"
        names[entry] = label
    return names


def stat_of(seeds: Mapping[int, Sequence[float]]) -> Stat:
    """Statistics over seeds of seed -> values; the values of a seed are averaged."""
    values = tuple((seed, math.fsum(v) / len(v)) for seed, v in sorted(seeds.items()))
    means = [value for _, value in values]
    mean = math.fsum(means) / len(means)
    if len(means) < 2:
        return Stat(mean, None, 1, values=values)
    return Stat(mean, _deviation(means), len(means), values=values)


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _quantile(seeds: int) -> float:
    """Two-sided 95 % quantile of Student's t for a number of seeds."""
    return float(stdtrit(seeds - 1, 0.975))


def best_lines(scores: Scores, lines: Sequence[tuple[Entry, int]], metric: str) -> list[int]:
    """Index of the line with the best mean of `metric`, without real data.

    The list is empty if another line ties with it (`tied`), or if there are fewer than two lines.
    """
    better = METRICS[metric].better
    stats = {
        i: scores[entry][nfe, metric]
        for i, (entry, nfe) in enumerate(lines)
        if entry.role != "real" and (nfe, metric) in scores[entry]
    }
    if not better or len(stats) < 2:
        return []
    pick = min if better == "lower" else max
    best = pick(stats, key=lambda i: stats[i].mean)
    rest = [stat for i, stat in stats.items() if i != best]
    return [] if any(tied(stats[best], stat, metric) for stat in rest) else [best]


def tied(a: Stat, b: Stat, metric: str) -> bool:
    """Whether two values may be equal: the 95 % interval of their difference contains 0.

    For equal seeds the interval is Student's t of the paired differences. Otherwise its half width
    is the root of the sum of both squared half widths, which is too wide for samples from the same
    noise. Scores of samples and times without intervals always tie; other numbers are compared
    exactly.
    """
    if a.mean == b.mean:
        return True
    seeds = [seed for seed, _ in a.values]
    if len(seeds) > 1 and seeds == [seed for seed, _ in b.values]:
        apart = [x - y for (_, x), (_, y) in zip(a.values, b.values)]
        width = _quantile(len(seeds)) * _deviation(apart) / math.sqrt(len(seeds))
        return abs(a.mean - b.mean) <= width
    widths = a.half_width, b.half_width
    if widths[0] is None or widths[1] is None:
        return METRICS[metric].sampled
    return abs(a.mean - b.mean) <= math.hypot(widths[0], widths[1])
