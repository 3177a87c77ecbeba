"""Contents of a comparison: tables, plots, rows of samples, and the numbers as JSON."""

from collections.abc import Callable, Sequence

import numpy as np

from ddistill.errors import ConfigError
from ddistill.evaluation.comparison.join import Comparison, Point, Source
from ddistill.evaluation.figures.image_grids import Grid, ImageRow
from ddistill.evaluation.figures.subplots import Subplot, SubplotFigure
from ddistill.evaluation.figures.tables import (
    BOLD_RULE,
    NOTHING,
    Table,
    count,
    line_of,
    range_of,
    score_label,
    stat_text,
)
from ddistill.evaluation.records.aggregate import Entry, Stat, best_lines, entry_of, tied
from ddistill.evaluation.records.environment import portable
from ddistill.evaluation.records.names import DISTANCES, METRICS, main_distance
from ddistill.evaluation.records.protocol import Protocol, summarise, variant

_MAIN = (*DISTANCES, "precision", "recall")
_COST_HEADS = ("teacher calls", "student updates", "training, s")
_COSTS = ("teacher_calls", "updates", "seconds")
_SHOWN_IMAGES = 16


def main_metrics(comparison: Comparison) -> list[str]:
    """The main distance, precision and recall, if measured."""
    measured = {metric for cells in comparison.scores.values() for _, metric in cells}
    distance = main_distance(measured)
    return [
        *([distance] if distance else []),
        *(m for m in ("precision", "recall") if m in measured),
    ]


def chosen_nfe(comparison: Comparison, wanted: Sequence[int]) -> list[int]:
    """Selects the numbers of evaluations in `wanted` that were measured, sorted.

    Raises:
      ConfigError: none of them was measured.
    """
    known = sorted({nfe for _, nfe in comparison.points if nfe})
    found = [nfe for nfe in sorted(set(wanted)) if nfe in known]
    if not found:
        raise ConfigError(
            f"--nfe={','.join(map(str, wanted))}: no sampler of these runs has so many network "
            f"evaluations. Measured: {', '.join(map(str, known))}."
        )
    return found


def matrix(comparison: Comparison, metric: str, counts: Sequence[int]) -> Table:
    """Table of one metric by method and NFE; the last lines are reference teacher and floor."""
    scores, names = comparison.scores, comparison.names
    entries = [e for e in scores if any((nfe, metric) in scores[e] for nfe in counts)]
    rows = [
        [names[e], *(stat_text(metric, scores[e].get((nfe, metric))) for nfe in counts)]
        for e in entries
    ]
    roles = [e.role for e in entries]
    best = frozenset(
        (i, 1 + j)
        for j, nfe in enumerate(counts)
        for i in best_lines(scores, [(e, nfe) for e in entries], metric)
    )
    for label, role, stat in _references(comparison, metric, counts):
        rows.append([label, *[stat_text(metric, stat)] * len(counts)])
        roles.append(role)
    m = METRICS[metric]
    return Table(
        ["method", *(f"NFE {nfe}" for nfe in counts)],
        rows,
        title=f"{m.label[:1].upper()}{m.label[1:]} by network evaluations per image (NFE)",
        caption=f"{_statistics(comparison)} {m.better.capitalize()} is better. {BOLD_RULE} The "
        "last lines are references for all columns.",
        roles=roles,
        best=best,
    )


def _references(
    comparison: Comparison, metric: str, counts: Sequence[int]
) -> list[tuple[str, str, Stat]]:
    scores, names = comparison.scores, comparison.names
    found = [
        (f"{names[e]}, NFE {nfe} (reference)", "teacher", scores[e][nfe, metric])
        for e, nfe in comparison.references
        if nfe not in counts and (nfe, metric) in scores[e]
    ]
    real = [e for e in scores if e.role == "real" and (0, metric) in scores[e]]
    return found + [(names[e], "real", scores[e][0, metric]) for e in real]


def score_tables(comparison: Comparison) -> list[Table]:
    """Two tables with a line for each method and NFE: main scores and cost, then other scores."""
    metrics = main_metrics(comparison)
    others = [
        m
        for m, metric in METRICS.items()
        if metric.column
        and m not in _MAIN
        and any(e.role != "real" and (n, m) in comparison.scores[e] for e, n in comparison.points)
    ]
    costs = [[_cost(comparison, p, name) for name in _COSTS] for p in comparison.points]
    seeds = [[str(_seed_count(comparison, p))] for p in comparison.points]
    cost_caption = (
        f"{_statistics(comparison)} The cost is the total over all stages from the teacher to the "
        "network: forward passes of the teacher (of one image each), optimiser steps, and seconds "
        "without compilation."
    )
    first = _table(comparison, metrics, ("seeds",), seeds, _COST_HEADS, costs)
    size = [[_cost(comparison, p, "parameters")] for p in comparison.points]
    second = _table(comparison, others, (), [], ("parameters",), size)
    return [
        Table(first.columns, first.rows, "Scores and cost", cost_caption, first.roles, first.best),
        Table(
            second.columns,
            second.rows,
            "Further scores",
            f"{_statistics(comparison)} PSNR is relative to the image of the reference teacher "
            "from the same noise; milliseconds per image depend on the machine.",
            second.roles,
            second.best,
        ),
    ]


def _table(
    comparison: Comparison,
    metrics: Sequence[str],
    front_heads: Sequence[str],
    front: Sequence[Sequence[str]],
    end_heads: Sequence[str],
    end: Sequence[Sequence[str]],
) -> Table:
    points, scores = comparison.points, comparison.scores
    columns = ["method", "NFE", *front_heads, *(METRICS[m].label for m in metrics), *end_heads]
    rows = []
    for i, (entry, nfe) in enumerate(points):
        cells = [stat_text(m, scores[entry].get((nfe, m))) for m in metrics]
        own = front[i] if front else []
        rows.append([comparison.names[entry], _nfe(nfe), *own, *cells, *end[i]])
    left = 2 + len(front_heads)
    best = frozenset(
        (i, left + j) for j, m in enumerate(metrics) for i in best_lines(scores, points, m)
    )
    return Table(columns, rows, roles=[e.role for e, _ in points], best=best)


def _nfe(nfe: int) -> str:
    return str(nfe) if nfe else NOTHING


def _cost(comparison: Comparison, point: Point, name: str) -> str:
    stat = comparison.costs.get(point, {}).get(name)
    if stat is None or not stat.mean:
        return NOTHING
    if name != "seconds":
        return count(stat.mean)
    return f"{stat.mean:,.0f}" + (f" ± {stat.spread:,.0f}" if stat.spread is not None else "")


def _seed_count(comparison: Comparison, point: Point) -> int:
    return len(
        {s for (e, n, _), found in comparison.seeds.items() if (e, n) == point for s in found}
    )


def subplot_figure(comparison: Comparison) -> SubplotFigure:
    """The main metrics against NFE, all measured NFE."""
    return SubplotFigure(
        [_subplot(comparison, metric) for metric in main_metrics(comparison)],
        caption=f"{_statistics(comparison)} The dotted line is the score of "
        f"{_floor_count(comparison)}real test images against the training images"
        f"{_floor_rule(comparison)}.",
    )


def _statistics(comparison: Comparison) -> str:
    """The statistics in the tables, for captions."""
    seeds = {run.seed for run in comparison.runs}
    if len(seeds) > 1:
        return "Mean ± standard deviation over seeds."
    return "One training seed; in brackets the 95 % interval over draws of the samples."


def _floor_count(comparison: Comparison) -> str:
    """Number of test images with a space, "360 "; "" if the runs have several numbers."""
    rows = [r for r in comparison.rows if entry_of(r).role == "real"]
    sizes = {Protocol.parse(row.protocol).samples for row in rows}
    return f"{sizes.pop()} " if len(sizes) == 1 else ""


def _floor_rule(comparison: Comparison) -> str:
    """How the floor is made comparable with samples."""
    protocol = comparison.runs[0].protocol
    if protocol.count is None:
        return "; few images give a larger distance than many"
    return (
        f": FD\N{INFINITY} is extrapolated to infinitely many images, and recall is computed "
        f"at {protocol.count} images for both"
    )


def _subplot(comparison: Comparison, metric: str) -> Subplot:
    lines, floor = [], None
    for entry, cells in comparison.scores.items():
        own = {nfe: stat for (nfe, m), stat in cells.items() if m == metric}
        if entry.role == "real":
            floor = own.get(0)
        else:
            lines.append(line_of(comparison.names[entry], own, entry.role))
    row = next(r for r in comparison.rows if r.metric == metric)
    distance = metric in DISTANCES
    title = score_label(row, metric) if distance else METRICS[metric].label
    return Subplot(
        title,
        METRICS[metric].better,
        lines,
        None if floor is None else floor.mean,
        None if floor is None else range_of(floor),
        logarithmic=distance,
    )


def sample_grid(
    comparison: Comparison,
    counts: Sequence[int],
    load: Callable[[Source], np.ndarray],
) -> Grid:
    """Rows of samples from the same noise: the reference teachers, then methods by falling NFE.

    Args:
      comparison: runs with one noise bank (`checks.check_runs`).
      counts: NFE to show.
      load: returns the images `[N, H, W, C]` of a source.
    """
    seed = _shown_seed(comparison)
    points = [*comparison.references]
    for nfe in sorted(counts, reverse=True):
        points += [p for p in comparison.points if p[1] == nfe and p not in points]
    rows, others = [], False
    for point in points:
        found = comparison.sources.get(point)
        if found is None:
            continue
        own = seed if seed in found else min(found)
        others = others or own != seed
        label = f"{comparison.names[point[0]]}, NFE {point[1]}"
        rows.append(_row(found[own], label if own == seed else f"{label}, seed {own}", load))
    caption = f"A column has one noise. Training seed {seed}"
    caption += ", unless a label names another one." if others else "."
    return Grid("Same noise, same column", rows, caption)


def _row(source: Source, label: str, load: Callable[[Source], np.ndarray]) -> ImageRow:
    images = np.clip(load(source)[:_SHOWN_IMAGES], -1.0, 1.0)
    metric = main_distance(source.scores) or ""
    note = f"{METRICS[metric].label} {source.scores[metric]:.2f}" if metric else ""
    return ImageRow(label, images, note)


def _shown_seed(comparison: Comparison) -> int:
    """The lowest seed that all experiments share; without a shared seed, the lowest seed."""
    seeds: dict[str, set[int]] = {}
    for run in comparison.runs:
        seeds.setdefault(run.experiment, set()).add(run.seed)
    common = set.intersection(*seeds.values())
    return min(common or set.union(*seeds.values()))


def tiles(comparison: Comparison, counts: Sequence[int]) -> list[tuple[str, str, str]]:
    """(value, label, note) of the best student at each NFE, at most four."""
    metric = main_metrics(comparison)[0]
    found = []
    for nfe in counts:
        student = _best(comparison, metric, nfe, "student")
        teacher = _best(comparison, metric, nfe, "teacher")
        if student:
            name, text, ties = student
            note = f"{teacher[0]}: {teacher[1]}" if teacher else ""
            kind = f"best student {METRICS[metric].label} at NFE {nfe}"
            kind += f", a tie with {ties} other{'s' if ties > 1 else ''}" if ties else ""
            found.append((text, f"{kind}: {name}", note))
    return found[:4]


def _best(comparison: Comparison, metric: str, nfe: int, role: str) -> tuple[str, str, int] | None:
    """Label and score of the best entry of a role, and the number of entries that tie with it."""
    own: dict[Entry, Stat] = {
        entry: cells[nfe, metric]
        for entry, cells in comparison.scores.items()
        if entry.role == role and (nfe, metric) in cells
    }
    if not own:
        return None
    entry = min(own, key=lambda e: own[e].mean)
    ties = sum(tied(own[entry], own[other], metric) for other in own if other != entry)
    return comparison.names[entry], stat_text(metric, own[entry], spread=False), ties


def protocols(comparison: Comparison) -> tuple[str, list[tuple[str, str]]]:
    """Common parts of the protocols and further parts of each method; see `summarise`."""
    rows = sorted(comparison.rows, key=entry_of)
    return summarise((comparison.names[entry_of(r)], variant(r.protocol)) for r in rows)


def as_data(comparison: Comparison, command: str) -> dict[str, object]:
    """All numbers with their seeds, costs and sources, for JSON."""
    shared, own = protocols(comparison)
    return {
        "command": command,
        "scores": [
            {**_key(comparison, (entry, nfe)), "metric": metric, **_stat(stat)}
            | {"seeds": list(comparison.seeds[entry, nfe, metric])}
            for entry, cells in comparison.scores.items()
            for (nfe, metric), stat in cells.items()
        ],
        "costs": [
            {**_key(comparison, point), **{name: _stat(stat) for name, stat in stats.items()}}
            | {"seeds": sorted(comparison.sources[point])}
            for point, stats in sorted(comparison.costs.items())
        ],
        "protocol": {"shared": shared, "further": dict(own)},
        "sources": [
            {
                "run": portable(run.folder),
                "experiment": run.experiment,
                "seed": run.seed,
                "features_hash": run.protocol.features_hash,
                "commands": sorted({row.command for row in run.rows}),
                "machines": sorted({row.machine for row in run.rows}),
            }
            for run in comparison.runs
        ],
        "notes": list(comparison.notes),
    }


def _key(comparison: Comparison, point: Point) -> dict[str, object]:
    entry, nfe = point
    return {
        "label": comparison.names[entry],
        "role": entry.role,
        "method": entry.method,
        "variant": entry.recipe,
        "students": entry.students,
        "width": entry.width,
        "nfe": nfe,
    }


def _stat(stat: Stat) -> dict[str, float | None]:
    return {"mean": stat.mean, "spread": stat.spread, "low": stat.low, "high": stat.high}
