"""python -m ddistill.record RUN... [--docs docs]: adds the results of runs to the record.

A RUN is the folder of a finished run, or its results.json. Its rows join docs/results.json, where
a row that measures the same thing anew replaces the old one, and docs/results.md is written from
it: what stands between the markers is generated, what stands outside is kept. Without a RUN only
results.md is written.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddistill.evaluation.markdown import merge_text, render
from ddistill.evaluation.plots import score_figure
from ddistill.evaluation.protocol import Row, read_rows, write_rows
from ddistill.evaluation.report import slug
from ddistill.evaluation.summary import experiments, score_plot
from ddistill.runtime.ending import one_line
from ddistill.runtime.files import read_text, write_bytes, write_text


@one_line()
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; a message and exit status 1 for files that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m ddistill.record",
        description="Adds the results of runs to docs/results.json and rewrites docs/results.md.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run, or results.json")
    parser.add_argument("--docs", default="docs", help="folder of the record (default: docs)")
    options = parser.parse_args(argv)
    try:
        print(record(options.runs, options.docs))
    except ValueError as error:
        sys.exit(f"error: {error}")


def record(runs: Iterable[str | Path], docs: str | Path = "docs") -> str:
    """Merges the rows of `runs` into the record in `docs` and writes it anew.

    All files are read and checked before any is written.

    Returns:
      One line that says what changed.

    Raises:
      ValueError: a file that is missing or not as `protocol.read_rows` wants it, or a results.md
        with damaged markers. The message names the file.
    """
    docs = Path(docs)
    store, page = docs / "results.json", docs / "results.md"
    old = read_rows(store) if store.exists() else []
    new = [row for run in runs for row in read_rows(_results_file(Path(run)))]
    rows, added, replaced = merge(old, new)
    before = read_text(page) if page.exists() else ""
    pictures = {f"{slug(' '.join(key))}.png": own for key, own in experiments(rows).items()}
    drawn = {name: own for name, own in pictures.items() if _worth_a_picture(own)}
    text = merge_text(before, render(rows, {name: f"results/{name}" for name in drawn}), str(page))

    write_rows(store, rows)
    changed = {row.identity for row in new} if new else set()
    for name, own in drawn.items():
        path = docs / "results" / name
        if not path.exists() or any(row.identity in changed for row in own):
            write_bytes(path, score_figure(score_plot(own)))
    write_text(page, text)
    return f"{store}: {len(rows)} rows ({added} new, {replaced} replaced); wrote {page}"


def merge(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[Row], int, int]:
    """Rows of both, the last of each identity, in a fixed order; how many are new and replaced."""
    table = {row.identity: row for row in old}
    known = set(table)
    for row in new:
        table[row.identity] = row
    touched = {row.identity for row in new}
    rows = [table[identity] for identity in sorted(table)]
    return rows, len(touched - known), len(touched & known)


def _results_file(run: Path) -> Path:
    return run / "results.json" if run.is_dir() else run


def _worth_a_picture(rows: Sequence[Row]) -> bool:
    points = {(row.method, row.nfe) for row in rows if row.metric == "fd" and row.nfe > 0}
    return len(points) > 1


if __name__ == "__main__":
    main()
