"""Tables and plots of rows of results.json."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ddistill.evaluation.figures.plots import ScorePlot
from ddistill.evaluation.figures.style import Line
from ddistill.evaluation.records.aggregate import (
    Entry,
    Stat,
    aggregate,
    best_lines,
    entry_of,
    labels,
)
from ddistill.evaluation.records.names import DISTANCES, METRICS, main_distance
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row

NOTHING = "\N{EN DASH}"  # text of a cell without a number


BOLD_RULE = (
    "Bold: the best value of a column, if its difference to every other value exceeds the 95 % "
    "interval of the difference."
)


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
      columns: headings.
      rows: one cell per column each; HTML shows the spread in "a ± b" smaller.
      title: heading of the table.
      caption: caption.
      roles: "teacher", "student", "real" or "" for each row; empty for no roles.
      best: (row, column) of bold cells.
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


def score_table(
    rows: Sequence[Row], title: str = "Scores", spread_of: Sequence[str] = DISTANCES
) -> Table:
    """Makes a table with a line for each sampler and NFE and a column for each measured metric.

    The last columns are the cost. The best values, without real data, are bold (`BOLD_RULE`).

    Args:
      rows: rows of one experiment and data set.
      title: heading.
      spread_of: metrics with spread over seeds, or with the interval of one seed; all metrics would
        make the table too wide to read.
    """
    scores = aggregate(rows)
    names = labels(scores)
    measured = {metric for cells in scores.values() for _, metric in cells}
    metrics = [m for m, metric in METRICS.items() if metric.column and m in measured]
    costs = _costs(rows)
    columns = ["sampler", "NFE", *(METRICS[m].label for m in metrics)]
    columns += ["training, s", "teacher calls"]
    lines = [(entry, nfe) for entry in scores for nfe in sorted({k[0] for k in scores[entry]})]
    table = []
    for entry, nfe in lines:
        stats = {m: scores[entry].get((nfe, m)) for m in metrics}
        cells = [stat_text(m, stat, m in spread_of) for m, stat in stats.items()]
        seconds, calls = costs.get((entry, nfe), (0.0, 0.0))
        cells += [f"{seconds:,.0f}" if seconds else NOTHING, count(calls) if calls else NOTHING]
        table.append([names[entry], str(nfe) if nfe else NOTHING, *cells])
    best = frozenset(
        (i, 2 + j) for j, m in enumerate(metrics) for i in best_lines(scores, lines, m)
    )
    return Table(columns, table, title, roles=[e.role for e, _ in lines], best=best)


def score_plot(rows: Sequence[Row], metric: str = "", **kwargs: str) -> ScorePlot:
    """Plots `metric` against NFE, one line per sampler; rows of method "real" are the floor.

    Args:
      rows: rows of one experiment and data set.
      metric: a metric for which lower is better; "" for the main distance.
      **kwargs: title, caption, floor_label, ylabel of `ScorePlot`.

    Raises:
      ValueError: no row has this metric.
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
    """A line of a plot from NFE -> statistics, with error bars if there are any."""
    ranges = [range_of(stat) for stat in stats.values()]
    return Line(
        label,
        list(stats),
        [stat.mean for stat in stats.values()],
        ranges if any(high > low for low, high in ranges) else (),
        role,
    )


def range_of(stat: Stat) -> tuple[float, float]:
    """(low, high): mean -+ standard deviation over seeds, or the interval of one seed."""
    if stat.spread is not None:
        return stat.mean - stat.spread, stat.mean + stat.spread
    if stat.low is not None and stat.high is not None:
        return stat.low, stat.high
    return stat.mean, stat.mean


def stat_text(metric: str, stat: Stat | None, spread: bool = True) -> str:
    """A statistic as text; a dash for None.

    "1.23 ± 0.04" over seeds, "1.23 [1.15, 1.31]" for one seed with an interval, else "1.23".
    """
    if stat is None:
        return NOTHING
    if metric == "parameters":
        return count(stat.mean)
    text = number(metric, stat.mean)
    if not spread:
        return text
    if stat.spread is not None:
        # The spread has as many decimal places as the mean.
        return f"{text} ± {_like(text, stat.spread)}"
    if stat.low is None or stat.high is None:
        return text
    text = _rounded(text, stat)
    return f"{text} [{_like(text, stat.low)}, {_like(text, stat.high)}]"


def _rounded(text: str, stat: Stat) -> str:
    """`text` with decimal places for two digits of the half width, but at least two places."""
    width = stat.half_width
    if not width or "e" in text:
        return text
    places = max(2, 1 - math.floor(math.log10(width)))
    return f"{stat.mean:,.{places}f}" if places < len(text.partition(".")[2]) else text


def _like(text: str, value: float) -> str:
    """`value` with as many decimal places as the number `text`."""
    return f"{value:.1e}" if "e" in text else f"{value:,.{len(text.partition('.')[2])}f}"


def number(metric: str, value: float) -> str:
    """A value of `metric` as text, in the format of the metric."""
    form = METRICS[metric].form
    if not form.endswith("g"):
        return format(value, form)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return format(value, f"#{form}").removesuffix(
        "."
    )  # 4.10 instead of 4.1, so that a column has equal decimal places


def count(value: float) -> str:
    """Large counts as in 1.23 M; small counts in full."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 10 * size or (value >= size and size >= 1e6):
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


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


def score_label(row: Row, metric: str) -> str:
    """Name of `metric` for an axis; for a Frechet distance with its features."""
    try:
        label = METRICS[metric].label
        if metric not in ("fd", "fd_infinity"):
            return label
        return Protocol.parse(row.protocol).label.replace("FD", label, 1)
    except ValueError:
        return METRICS[metric].label
