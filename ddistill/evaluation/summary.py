"""Rows of results.json as tables and plots: means over seeds, one line a sampler.

Used by the report of a run and by `ddistill.record`, so that both tell the same story.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ddistill.evaluation.drawing import Line
from ddistill.evaluation.plots import ScorePlot
from ddistill.evaluation.protocol import Protocol, Row, variant
from ddistill.evaluation.vocabulary import METHODS, METRICS

# Parts of a protocol that may differ between rows of one line of a table.
_NOT_VARIANT = ("nfe", "noise_seed")
NOTHING = "\N{EN DASH}"  # what a cell without a number holds


@dataclass(frozen=True)
class Stat:
    """Mean over seeds, sample standard deviation (None for one seed) and number of seeds."""

    mean: float
    spread: float | None
    seeds: int


@dataclass(frozen=True, order=True)
class Entry:
    """One line of a table: everything of a row's identity but nfe, metric and seed.

    `recipe` is what an experiment's name holds after a slash: "sfddm_digits/random_init" is a
    variant of "sfddm_digits" and stands in its table.
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


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
      columns: headings.
      rows: as many cells as columns each; "a ± b" shows b smaller where the medium can.
      title: heading of the table.
      caption: what the numbers are.
      roles: "teacher", "student", "real" or "" for each row; empty for none.
      best: (row, column) of the cells to set in bold.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    roles: Sequence[str] = ()
    best: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Row {i} of table '{self.title}' has {len(row)} cells for"
                    f" {len(self.columns)} columns."
                )


Scores = dict[Entry, dict[tuple[int, str], Stat]]


def experiments(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by (experiment without its recipe, data), in alphabetical order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.experiment.partition("/")[0], row.data), []).append(row)
    return dict(sorted(groups.items()))


def entry_of(row: Row) -> Entry:
    """The line of a table that a row belongs to."""
    order = list(METHODS).index(row.method)
    if METHODS[row.method].role == "real":
        order = len(METHODS)  # the floor stands below everything that it is the floor of
    text = variant(row.protocol, drop=_NOT_VARIANT)
    recipe = row.experiment.partition("/")[2]
    return Entry(order, row.method, recipe, row.students, row.width, text)


def aggregate(rows: Iterable[Row]) -> Scores:
    """Statistics over seeds: entry -> (nfe, metric) -> Stat, entries in the order of METHODS.

    Several noise banks of one seed are averaged first: the spread is that between trainings.
    """
    values: dict[Entry, dict[tuple[int, str], dict[int, list[float]]]] = {}
    for row in rows:
        cell = values.setdefault(entry_of(row), {}).setdefault((row.nfe, row.metric), {})
        cell.setdefault(row.seed, []).append(row.value)
    return {
        entry: {key: stat_of(seeds) for key, seeds in sorted(values[entry].items())}
        for entry in sorted(values)
    }


def labels(entries: Iterable[Entry]) -> dict[Entry, str]:
    """Short names that tell the entries apart: students and width only where they say something."""
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


def score_table(
    rows: Sequence[Row], title: str = "Scores", spread_of: Sequence[str] = ("fd", "fid")
) -> Table:
    """One line for each sampler and NFE, a column for each metric measured, cost at the end.

    The best value of every column among all but real data is bold. The spread over seeds is
    shown for the metrics in `spread_of`; for all of them a table would be too wide to read.
    """
    scores = aggregate(rows)
    names = labels(scores)
    metrics = [m for m in METRICS if any(m in {k[1] for k in cells} for cells in scores.values())]
    costs = _costs(rows)
    columns = ["sampler", "NFE", *(METRICS[m].label for m in metrics)]
    columns += ["training, s", "teacher calls"]
    lines = [(entry, nfe) for entry in scores for nfe in sorted({k[0] for k in scores[entry]})]
    table = []
    for entry, nfe in lines:
        stats = {m: scores[entry].get((nfe, m)) for m in metrics}
        cells = [show(m, stat, m in spread_of) for m, stat in stats.items()]
        seconds, calls = costs.get((entry, nfe), (0.0, 0.0))
        cells += [f"{seconds:,.0f}" if seconds else NOTHING, count(calls) if calls else NOTHING]
        table.append([names[entry], str(nfe) if nfe else NOTHING, *cells])
    best = frozenset(
        (i, 2 + j) for j, m in enumerate(metrics) for i in best_lines(scores, lines, m)
    )
    return Table(columns, table, title, roles=[e.role for e, _ in lines], best=best)


def score_plot(rows: Sequence[Row], metric: str = "fd", **kwargs: str) -> ScorePlot:
    """`metric` against NFE, a line for each sampler; the row of method "real" is the floor.

    Args:
      rows: of one experiment and data set.
      metric: lower is better.
      **kwargs: title, caption, floor_label, ylabel of `ScorePlot`.

    Raises:
      ValueError: no row of this metric.
    """
    rows = [row for row in rows if row.metric == metric]
    if not rows:
        raise ValueError(f"No row has metric '{metric}'; nothing to plot.")
    scores = aggregate(rows)
    names = labels(scores)
    lines, floor = [], None
    for entry, cells in scores.items():
        if entry.role == "real":
            floor = next(iter(cells.values())).mean
            continue
        stats = list(cells.items())
        spread = [s.spread or 0.0 for _, s in stats] if any(s.spread for _, s in stats) else []
        lines.append(
            Line(
                names[entry],
                [k[0] for k, _ in stats],
                [s.mean for _, s in stats],
                spread,
                entry.role,
            )
        )
    kwargs.setdefault("ylabel", score_label(rows[0], metric))
    return ScorePlot(lines, floor, **kwargs)


def show(metric: str, stat: Stat | None, spread: bool = True) -> str:
    """A statistic as text: "1.23", "1.23 ± 0.04" over seeds, a dash where nothing was measured."""
    if stat is None:
        return NOTHING
    if metric == "parameters":
        return count(stat.mean)
    text = number(metric, stat.mean)
    if stat.spread is None or not spread:
        return text
    # The spread is given to the last place of the mean: more digits would claim too much.
    if "e" in text:
        return f"{text} ± {stat.spread:.1e}"
    return f"{text} ± {stat.spread:,.{len(text.partition('.')[2])}f}"


def number(metric: str, value: float) -> str:
    """A value of `metric` as text, in the places that the metric asks for."""
    form = METRICS[metric].form
    if not form.endswith("g"):
        return format(value, form)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return format(value, f"#{form}").removesuffix(".")  # 4.10, not 4.1: same places in a column


def count(value: float) -> str:
    """Large counts as 1.23 M; small ones in full."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * size or (value >= size and size >= 1e6):
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def stat_of(seeds: Mapping[int, Sequence[float]]) -> Stat:
    """Statistics over seeds of seed -> values, of which each seed gives its mean."""
    means = [math.fsum(v) / len(v) for _, v in sorted(seeds.items())]
    mean = math.fsum(means) / len(means)
    if len(means) < 2:
        return Stat(mean, None, 1)
    spread = math.sqrt(math.fsum((m - mean) ** 2 for m in means) / (len(means) - 1))
    return Stat(mean, spread, len(means))


def _costs(rows: Iterable[Row]) -> dict[tuple[Entry, int], tuple[float, float]]:
    """Mean training seconds and teacher calls over seeds for (entry, nfe)."""
    by_seed: dict[tuple[Entry, int], dict[int, tuple[float, int]]] = {}
    for row in rows:
        seeds = by_seed.setdefault((entry_of(row), row.nfe), {})
        seeds[row.seed] = (row.train_seconds, row.teacher_calls)
    return {
        key: (
            math.fsum(s for s, _ in seeds.values()) / len(seeds),
            sum(c for _, c in seeds.values()) / len(seeds),
        )
        for key, seeds in by_seed.items()
    }


def best_lines(scores: Scores, lines: Sequence[tuple[Entry, int]], metric: str) -> list[int]:
    """Indices of the lines, real data left out, whose mean of `metric` is best; none of one."""
    better = METRICS[metric].better
    means = {
        i: scores[entry][nfe, metric].mean
        for i, (entry, nfe) in enumerate(lines)
        if entry.role != "real" and (nfe, metric) in scores[entry]
    }
    if not better or len(means) < 2:
        return []
    target = min(means.values()) if better == "lower" else max(means.values())
    return [i for i, mean in means.items() if mean == target]


def score_label(row: Row, metric: str) -> str:
    """Name of `metric` for an axis: that of a Frechet distance tells its features."""
    try:
        return Protocol.parse(row.protocol).label if metric == "fd" else METRICS[metric].label
    except ValueError:
        return METRICS[metric].label
