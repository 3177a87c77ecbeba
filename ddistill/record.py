"""python -m ddistill.record RUN... [--docs docs] [--seeds 3,4]: adds results of runs to the record.

A RUN is the folder of a finished run, or its results.json. Its rows are added to docs/results.json,
where a new row replaces an old row of the same measurement. From it docs/results.md, the list of
experiments, and docs/results/EXPERIMENT.md, their tables, are generated; text outside the markers
of these pages is kept. Without a RUN only the pages are written.

Tables and pictures show the seeds that were not used to tune the settings of an experiment
(config.evaluation.tuned_on), if there are any; --seeds=3,4 chooses other seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ddistill.command_line import Parser, one_line_ending
from ddistill.evaluation.attempts import Attempts
from ddistill.evaluation.figures.plots import score_figure
from ddistill.evaluation.figures.tables import score_plot
from ddistill.evaluation.records.aggregate import experiments
from ddistill.evaluation.records.names import main_distance
from ddistill.evaluation.records.notes import comparable_rows, fresh_rows, listed, resampled
from ddistill.evaluation.records.rows import Row, read_rows, write_rows
from ddistill.evaluation.report.results_md import (
    merge_text,
    page_names,
    picture_names,
    render,
    render_index,
)
from ddistill.planning.opened import import_extensions
from ddistill.runtime.files import expand, read_text, write_bytes, write_text
from ddistill.runtime.leftovers import remove_leftovers
from ddistill.text import markdown, printable


@one_line_ending()
def main(argv: Sequence[str] | None = None, program: str = "python -m ddistill.record") -> None:
    """Entry point of the command line; exit status 1 with a message for unusable files."""
    parser = Parser(
        program,
        "Adds the results of runs to docs/results.json and rewrites the pages made from it.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run, or results.json")
    parser.add_argument("--docs", help="folder of the record (default: docs, if it is a record)")
    parser.add_argument(
        "--seeds",
        default="",
        help="seeds in tables and pictures (default: seeds that were not used for tuning)",
    )
    options = parser.parse_all(argv)
    docs = Path("docs") if options.docs is None else expand(options.docs)
    if options.docs is None and not any(path.is_file() for path in _files(docs)):
        raise ValueError(
            f"{docs.absolute()} is not a record: it has no results.json or results.md. Run "
            "the command in the project folder, or give --docs=FOLDER to begin a record there."
        )
    print(printable(record(options.runs, docs, _seeds(options.seeds))))


def record(runs: Iterable[str | Path], docs: str | Path = "docs", seeds: Sequence[int] = ()) -> str:
    """Merges the rows of `runs` into the record in `docs` and writes the record.

    The function reads and checks all files before it writes. The record keeps the rows of all
    seeds.

    Args:
      runs: folders of runs, or their results.json.
      docs: folder of the record.
      seeds: seeds in tables and pictures; empty for the seeds that were not used for tuning.

    Returns:
      One line on the changes.

    Raises:
      ValueError: a file is missing or malformed (`rows.read_rows`), the markers of a page are
        damaged, or no row has one of `seeds`. The message names the file.
    """
    docs = Path(docs)
    store, page = _files(docs)
    if not (runs := list(runs)) and not store.exists() and not page.exists():
        raise ValueError(f"{docs} has no results.json yet; name a RUN to begin a record there.")
    files = [_results_file(expand(run)) for run in runs]
    for file in files:
        import_extensions(file.parent)
    old = read_rows(store) if store.exists() else []
    new = [row for file in files for row in read_rows(file)]
    rows, added, replaced = merge(old, new)
    if seeds and not any(row.seed in seeds for row in rows):
        known = listed({row.seed for row in rows})
        raise ValueError(f"--seeds={listed(seeds)}: the record has no such seed. Seeds: {known}.")
    found = experiments(rows)
    names = picture_names(found)
    fresh = {names[key]: comparable_rows(fresh_rows(own, seeds))[0] for key, own in found.items()}
    shown = {name: own for name, own in fresh.items() if _worth_a_picture(own)}
    attempt = Attempts()
    changed = {row.identity for row in new}
    drawn: dict[str, bytes | None] = {}
    for name, own in shown.items():
        there = (docs / "results" / name).exists()
        if seeds or not there or any(row.identity in changed for row in own):
            drawn[name] = attempt(name, partial(_picture, own))
    links = {name: name for name in shown if drawn.get(name, b"") is not None}
    pages = _pages(docs, rows, links, seeds)

    remove_leftovers(docs, docs / "results")
    write_rows(store, rows, grouped=True)
    for name, picture in drawn.items():
        path = docs / "results" / name
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, picture)
    for path, text in pages.items():
        write_text(path, text)
    missing = "".join(f"; {name} is not drawn ({why})" for name, why in attempt.failed)
    return (
        f"{store}: {len(rows)} rows ({added} new, {replaced} replaced); wrote {page} and "
        f"{len(pages) - 1} pages of experiments{missing}"
    )


def _pages(
    docs: Path, rows: Sequence[Row], links: Mapping[str, str], seeds: Sequence[int]
) -> dict[Path, str]:
    """The text of results.md and of the page of every experiment, by path."""
    found = experiments(rows)
    names = page_names(found)
    _, page = _files(docs)
    pages = {page: merge_text(_text(page), _index(rows, names, seeds), str(page))}
    for experiment, name in names.items():
        path = docs / "results" / name
        own = [row for key in found if key[0] == experiment for row in found[key]]
        tables = render(own, links, seeds)
        pages[path] = merge_text(_text(path), tables, str(path), markdown(experiment))
    return pages


def _index(rows: Sequence[Row], names: Mapping[str, str], seeds: Sequence[int]) -> str:
    return render_index(rows, {key: f"results/{name}" for key, name in names.items()}, seeds)


def _text(page: Path) -> str:
    return read_text(page) if page.exists() else ""


def merge(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[Row], int, int]:
    """Merges rows; a new row replaces an old row of the same identity.

    If a run was scored again, all its rows of an earlier version are removed, including rows that
    have no successor, such as a floor with another number of images than the samples.

    Returns:
      (rows in a fixed order, number of new rows, number of replaced rows).
    """
    again = {_run_of(row) for row in new if resampled(row)}
    known = {row.identity for row in old}
    table = {row.identity: row for row in old if resampled(row) or _run_of(row) not in again}
    for row in new:
        table[row.identity] = row
    touched = {row.identity for row in new}
    rows = [table[identity] for identity in sorted(table)]
    return rows, len(touched - known), len(touched & known)


def _files(docs: Path) -> tuple[Path, Path]:
    """Paths of the rows of a record and of its page."""
    return docs / "results.json", docs / "results.md"


def _results_file(run: Path) -> Path:
    return run / "results.json" if run.is_dir() else run


def _run_of(row: Row) -> tuple[str, str, int]:
    return row.experiment.partition("/")[0], row.data, row.seed


def _picture(rows: Sequence[Row]) -> bytes:
    return score_figure(score_plot(rows))


def _worth_a_picture(rows: Sequence[Row]) -> bool:
    main = main_distance({row.metric for row in rows})
    points = {(row.method, row.nfe) for row in rows if row.metric == main and row.nfe > 0}
    return len(points) > 1


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--seeds={text!r} must be seeds with commas between, as in 3,4,5.")
    return sorted({int(part) for part in parts})


if __name__ == "__main__":
    main()
