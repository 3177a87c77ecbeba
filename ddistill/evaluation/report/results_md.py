"""The generated parts of a record: docs/results.md and a page for each experiment.

results.md lists the experiments; docs/results/EXPERIMENT.md has their tables.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from ddistill.evaluation.figures.tables import BOLD_RULE, NOTHING, Table, score_table, stat_text
from ddistill.evaluation.records.aggregate import (
    Entry,
    Scores,
    Stat,
    aggregate,
    best_lines,
    entry_of,
    experiments,
    labels,
)
from ddistill.evaluation.records.names import METRICS, main_distance
from ddistill.evaluation.records.notes import (
    comparable_rows,
    fresh_rows,
    listed,
    tuning_notes,
    warning_notes,
)
from ddistill.evaluation.records.protocol import summarise
from ddistill.evaluation.records.published import Published, published
from ddistill.evaluation.records.rows import Row
from ddistill.text import code_span, file_names
from ddistill.text import markdown as escaped

BEGIN = "<!-- generated:begin (python -m ddistill.record; do not edit between the markers) -->"
END = "<!-- generated:end -->"
_NO_RESULTS = "No results yet: `python -m ddistill.record runs/NAME` adds the results of a run."
_INTERVAL = re.compile(r"[-+.,\de]+ \[[-+.,\de]+, [-+.,\de]+\]( \(\d+\))?")
_BEGIN_KEY, _END_KEY = "<!-- generated:begin", "<!-- generated:end"


def merge_text(before: str, generated: str, name: str, title: str = "Results") -> str:
    """Replaces the text between the markers of the page `before` by `generated`.

    A page without markers gets them at its end; an empty page also gets a title.

    Args:
      before: the page; "" for a new one.
      generated: Markdown.
      name: the file, for messages.
      title: of a new page, as Markdown.

    Raises:
      ValueError: a marker is missing, repeated or in the wrong order; `name` is the file in the
        message.
    """
    block = f"{BEGIN}\n\n{generated.strip()}\n\n{END}"
    begins, ends = before.count(_BEGIN_KEY), before.count(_END_KEY)
    if (begins, ends) == (0, 0):
        return (f"{before.rstrip()}\n\n" if before.strip() else f"# {title}\n\n") + block + "\n"
    start, end = before.find(_BEGIN_KEY), before.find(_END_KEY)
    if (begins, ends) != (1, 1) or end < start:
        raise ValueError(
            f"{name}: found {begins} '{_BEGIN_KEY} -->' and {ends} '{_END_KEY} -->'; there must be"
            " one of each, in this order. Repair the markers by hand; text outside them is kept."
        )
    close = before.find("-->", end) + len("-->")
    return before[:start] + block + before[close:]


def render(
    rows: Sequence[Row],
    pictures: Mapping[str, str] | None = None,
    seeds: Sequence[int] = (),
) -> str:
    """Renders the tables of rows as Markdown, with a section for each experiment and data set.

    Args:
      rows: any rows, on a page of docs/results/ those of one experiment.
      pictures: name of `picture_names` -> link, for sections with a picture.
      seeds: seeds to show; empty for the seeds that were not used for tuning, if any.
    """
    if not rows:
        return _NO_RESULTS
    parts = [
        "Mean ± standard deviation over training seeds, number of seeds in round brackets; for one"
        " seed, in square brackets, the 95 % interval over draws of the samples. FD\N{INFINITY} is"
        " the Frechet distance extrapolated to infinitely many samples; FD is the distance of the"
        f" samples in the protocol, and larger. {BOLD_RULE} Numbers are comparable only under the"
        " same protocol, which is below each table."
    ]
    found = experiments(rows)
    names = picture_names(found)
    for key, own in found.items():
        fresh = fresh_rows(own, seeds)
        shown, earlier = comparable_rows(fresh)
        if shown:
            notes = [*warning_notes(shown), *earlier, *_seed_notes(own, fresh)]
            parts += _section(*key, shown, notes, (pictures or {}).get(names[key], ""))
    if len(parts) == 1:
        parts.append(f"No rows of the seeds {listed(seeds)} (other rows in results.json).")
    return "\n\n".join(parts)


def render_index(rows: Sequence[Row], pages: Mapping[str, str], seeds: Sequence[int] = ()) -> str:
    """Renders the list of experiments for results.md as Markdown.

    Args:
      rows: any rows.
      pages: name of an experiment -> link to its page.
      seeds: as for `render`.
    """
    if not rows:
        return _NO_RESULTS
    table = []
    for (experiment, data), own in experiments(rows).items():
        shown, _ = comparable_rows(fresh_rows(own, seeds))
        if not shown:
            continue
        main = main_distance({row.metric for row in shown}) or ""
        scores = aggregate(row for row in shown if row.metric == main)
        cells = [_best(scores, role, main) for role in ("student", "teacher", "real")]
        found = listed({row.seed for row in shown})
        name = METRICS[main].label if main else NOTHING
        link = f"[{escaped(experiment)}]({pages[experiment]})"
        table.append([link, *map(escaped, (data, found, name, *cells))])
    columns = ["experiment", "data", "seeds", "score", "best student", "best of teacher", "floor"]
    lines = [columns, [":--"] * 4 + ["--:"] * 3, *table]
    return "\n\n".join(
        [
            "All experiments on record, with their lowest scores at any number of network "
            "evaluations (NFE). Their pages have the tables, protocols, commands and machines.",
            "\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        ]
    )


def _best(scores: Scores, role: str, metric: str) -> str:
    """The lowest score of the entries of a role, with its number of evaluations."""
    found = [
        (stat, nfe)
        for entry in scores
        if entry.role == role
        for (nfe, _), stat in scores[entry].items()
    ]
    if not found:
        return NOTHING
    stat, nfe = min(found, key=lambda item: item[0].mean)
    return stat_text(metric, stat, spread=False) + (f" (NFE {nfe})" if nfe else "")


def picture_names(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Distinct file names for the pictures of (experiment, data set)."""
    texts = {key: "\0".join(key) for key in keys}
    names = file_names(texts.values())
    return {key: f"{names[text]}.png" for key, text in texts.items()}


def page_names(keys: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Distinct file names for the pages of experiments, from (experiment, data set)."""
    names = file_names(experiment for experiment, _ in keys)
    return {experiment: f"{name}.md" for experiment, name in names.items()}


def _seed_notes(rows: Sequence[Row], shown: Sequence[Row]) -> list[str]:
    """Notes on the seeds of tuning and on seeds of the record that are not shown."""
    notes = tuning_notes(shown)
    left_out = {row.seed for row in rows} - {row.seed for row in shown}
    if left_out:
        tuned = {seed for row in rows for seed in row.tuned_on}
        why = ", on which settings were tuned" if left_out <= tuned else ""
        kept = listed({row.seed for row in shown})
        of = listed(left_out)
        noun = "seeds" if len(left_out) > 1 else "seed"
        notes = [f"These seeds: {kept}. Left out: {noun} {of}{why} (rows in results.json)."]
    return notes


def _section(
    experiment: str, data: str, rows: Sequence[Row], notes: Sequence[str], picture: str
) -> list[str]:
    title = f"{escaped(experiment)}, {escaped(data)}"
    parts = [f"## {title}", *map(escaped, notes)]
    if picture:
        parts.append(f"![FD against network evaluations: {title}]({picture})")
    metrics = {row.metric for row in rows}
    main = main_distance(metrics) or min(metrics)
    matrix, sources = _matrix(rows, main, data)
    parts.append(f"**{METRICS[main].label} by network evaluations per image (NFE)**")
    parts.append(markdown(matrix))
    parts += [f"Published FID: {sources}."] if sources else []
    every = METRICS.keys() - {main}
    if metrics & every:
        # The attribute is for python-markdown, which leaves the text of other HTML as it is.
        parts.append('<details markdown="1"><summary>All scores and costs</summary>')
        parts.append(markdown(score_table(rows, spread_of=tuple(METRICS))))
        parts.append("</details>")
    parts.append(_provenance(rows))
    return parts


def _matrix(rows: Sequence[Row], metric: str, data: str) -> tuple[Table, str]:
    """Table of one metric by method and NFE with published FIDs, and the sources of the FIDs."""
    scores = aggregate(row for row in rows if row.metric == metric)
    names = labels(scores)
    counts = sorted({nfe for entry in scores for nfe, _ in scores[entry] if nfe > 0})
    table, sources = [], []
    for entry in scores:
        cells = [_cell(scores, entry, nfe, metric) for nfe in counts]
        found = [] if entry.role == "real" else _papers(entry, data, counts)
        sources += [p.source for p in found]
        paper = ", ".join(f"{p.nfe}: {p.value:.2f}" for p in found) or NOTHING
        table.append([names[entry], *cells, paper])
    columns = ["method", *map(str, counts), "paper (NFE: FID)"]
    best = frozenset(
        (i, 1 + j)
        for j, nfe in enumerate(counts)
        for i in best_lines(scores, [(entry, nfe) for entry in scores], metric)
    )
    return Table(columns, table, best=best), "; ".join(dict.fromkeys(sources))


def _cell(scores: Scores, entry: Entry, nfe: int, metric: str) -> str:
    if entry.role == "real":  # the floor does not depend on NFE
        stat: Stat | None = next(iter(scores[entry].values()))
    else:
        stat = scores[entry].get((nfe, metric))
    return stat_text(metric, stat) + (f" ({stat.seeds})" if stat else "")


def _papers(entry: Entry, data: str, counts: Sequence[int]) -> list[Published]:
    # Published numbers are for the recipe of the paper and its number of students.
    if entry.recipe:
        return []
    found = [published(entry.method, data, nfe, entry.students) for nfe in counts]
    return [p for p in found if p is not None]


def _provenance(rows: Sequence[Row]) -> str:
    names = labels({entry_of(row) for row in rows})
    ordered = sorted(rows, key=entry_of)
    shared, own = summarise((names[entry_of(row)], row.protocol) for row in ordered)
    lines = [f"- protocol: `{shared}`"] if shared else []
    lines += [f"- protocol, {escaped(label)}: `{text}`" for label, text in own]
    teachers = {row.reference_teacher for row in rows if row.metric.endswith("_to_teacher")}
    lines += [f"- teacher's images: {code_span(text)}" for text in sorted(teachers - {""})]
    lines += [f"- command: {code_span(text)}" for text in sorted({row.command for row in rows})]
    lines += [f"- machine: {escaped(text)}" for text in sorted({row.machine for row in rows})]
    return "\n".join(lines)


def markdown(table: Table) -> str:
    """Renders a table in GitHub Markdown, with numbers aligned right and best values bold."""
    lines = [
        "| " + " | ".join(escaped(c) for c in table.columns) + " |",
        "|:--" + "|--:" * (len(table.columns) - 1) + "|",
    ]
    for i, row in enumerate(table.rows):
        cells = [
            f"**{_text_cell(text)}**" if (i, j) in table.best else _text_cell(text)
            for j, text in enumerate(row)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text_cell(text: str) -> str:
    # Intervals contain no links, so they need no escapes.
    return text if _INTERVAL.fullmatch(text) else escaped(text)
