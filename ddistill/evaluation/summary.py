"""Rows of results.json as tables and plots: means over seeds, one line a sampler.

Used by the report of a run and by `ddistill.record`, so that both tell the same story.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtrit

from ddistill.evaluation.drawing import Line
from ddistill.evaluation.plots import ScorePlot
from ddistill.evaluation.protocol import Protocol, Row, variant
from ddistill.evaluation.vocabulary import DISTANCES, METHODS, METRICS, main_distance

# Parts of a protocol that may differ between rows of one line of a table.
_NOT_VARIANT = ("nfe", "noise_seed")
NOTHING = "\N{EN DASH}"  # what a cell without a number holds


BOLD_RULE = (
    "Bold: the best of a column, where it differs from every other by more than the 95 % interval "
    "of the difference; otherwise the best ones tie, and nothing is bold."
)


@dataclass(frozen=True)
class Stat:
    """A score over seeds.

    Attributes:
      mean: over seeds.
      spread: sample standard deviation; None for one seed.
      seeds: their number.
      low, high: 95 % interval over other samples, of one seed; None for several, and without one.
      values: (seed, value), in the order of seeds.
    """

    mean: float
    spread: float | None
    seeds: int
    low: float | None = None
    high: float | None = None
    values: tuple[tuple[int, float], ...] = ()

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval: Student's t over seeds, or that of one seed's samples."""
        if self.spread is not None:
            return _quantile(self.seeds) * self.spread / math.sqrt(self.seeds)
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


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
    rows: Sequence[Row], title: str = "Scores", spread_of: Sequence[str] = DISTANCES
) -> Table:
    """One line for each sampler and NFE, a column for each metric measured, cost at the end.

    The best value of every column among all but real data is bold where it stands out
    (`BOLD_RULE`). The spread over seeds, or one seed's interval, is shown for the metrics in
    `spread_of`; for all of them a table would be too wide to read.
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


def score_plot(rows: Sequence[Row], metric: str = "", **kwargs: str) -> ScorePlot:
    """`metric` against NFE, a line for each sampler; the row of method "real" is the floor.

    Args:
      rows: of one experiment and data set.
      metric: lower is better; "" for the distance that stands for the quality of samples.
      **kwargs: title, caption, floor_label, ylabel of `ScorePlot`.

    Raises:
      ValueError: no row of this metric.
    """
    metric = metric or main_distance({row.metric for row in rows}) or DISTANCES[-1]
    rows = [row for row in rows if row.metric == metric]
    if not rows:
        raise ValueError(f"No row has metric '{metric}'; nothing to plot.")
    scores = aggregate(rows)
    names = labels(scores)
    lines, floor = [], None
    for entry, cells in scores.items():
        if entry.role == "real":
            floor = next(iter(cells.values()))
            continue
        lines.append(line_of(names[entry], {nfe: s for (nfe, _), s in cells.items()}, entry.role))
    kwargs.setdefault("ylabel", score_label(rows[0], metric))
    if floor is None:
        return ScorePlot(lines, None, None, **kwargs)
    return ScorePlot(lines, floor.mean, range_of(floor), **kwargs)


def line_of(label: str, stats: Mapping[int, Stat], role: str) -> Line:
    """A line of a plot from NFE -> statistics, with error bars as far as there are any."""
    ranges = [range_of(stat) for stat in stats.values()]
    return Line(
        label,
        list(stats),
        [stat.mean for stat in stats.values()],
        ranges if any(high > low for low, high in ranges) else (),
        role,
    )


def range_of(stat: Stat) -> tuple[float, float]:
    """Mean and standard deviation over seeds, or one seed's interval, as (low, high)."""
    if stat.spread is not None:
        return stat.mean - stat.spread, stat.mean + stat.spread
    if stat.low is not None and stat.high is not None:
        return stat.low, stat.high
    return stat.mean, stat.mean


def show(metric: str, stat: Stat | None, spread: bool = True) -> str:
    """A statistic as text, a dash where nothing was measured.

    "1.23 ± 0.04" over seeds, "1.23 [1.15, 1.31]" for one seed with its interval, "1.23" without.
    """
    if stat is None:
        return NOTHING
    if metric == "parameters":
        return count(stat.mean)
    text = number(metric, stat.mean)
    if not spread:
        return text
    if stat.spread is not None:
        # The spread is given to the last place of the mean: more digits would claim too much.
        return f"{text} ± {_like(text, stat.spread)}"
    if stat.low is None or stat.high is None:
        return text
    text = _rounded(text, stat)
    return f"{text} [{_like(text, stat.low)}, {_like(text, stat.high)}]"


def _rounded(text: str, stat: Stat) -> str:
    """`text` in no more places than tell the interval's half-width in two digits, but in two."""
    width = stat.half_width
    if not width or "e" in text:
        return text
    places = max(2, 1 - math.floor(math.log10(width)))
    return f"{stat.mean:,.{places}f}" if places < len(text.partition(".")[2]) else text


def _like(text: str, value: float) -> str:
    """`value` in as many places as `text`, another number."""
    return f"{value:.1e}" if "e" in text else f"{value:,.{len(text.partition('.')[2])}f}"


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
    """Two-sided 95 % quantile of Student's t for so many seeds."""
    return float(stdtrit(seeds - 1, 0.975))


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
    """Index of the line with the best mean of `metric`, real data left out, if it stands out.

    Empty where another line ties with it (`tied`), and where there is nothing to compare with.
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
    """Whether two values may be equal: the 95 % interval of their difference holds 0.

    Over the same seeds it is that of Student's t of the differences of each seed. Otherwise both
    half-widths are added as squares, which is too wide for samples of the same noise. Scores of
    samples, and times, are tied without an interval; other numbers are compared as they are.
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


def score_label(row: Row, metric: str) -> str:
    """Name of `metric` for an axis: that of a Frechet distance tells its features."""
    try:
        label = METRICS[metric].label
        if metric not in ("fd", "fd_infinity"):
            return label
        return Protocol.parse(row.protocol).label.replace("FD", label, 1)
    except ValueError:
        return METRICS[metric].label
