"""python -m ddistill.record RUN... [--docs docs]: adds the results of runs to the record.

A RUN is the folder of a finished run, or its results.json. Its rows join docs/results.json, where
a row that measures the same thing anew replaces the old one, and docs/results.md is written from
it: what stands between the markers is generated, what stands outside is kept. Without a RUN only
results.md is written.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from ddistill.command_line import Parser, expected_errors
from ddistill.evaluation.markdown import merge_text, picture_names, render
from ddistill.evaluation.plots import score_figure
from ddistill.evaluation.protocol import Row, read_rows, write_rows, write_text
from ddistill.evaluation.report import Attempts
from ddistill.evaluation.summary import experiments, score_plot
from ddistill.text import printable


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; a message and exit status 1 for files that cannot be used."""
    parser = Parser(
        "python -m ddistill.record",
        "Adds the results of runs to docs/results.json and rewrites docs/results.md.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run, or results.json")
    parser.add_argument("--docs", default="docs", help="folder of the record (default: docs)")
    options = parser.parse_all(argv)
    with expected_errors():
        print(printable(record(options.runs, options.docs)))


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
    before = _text(page) if page.exists() else ""
    found = experiments(rows)
    names = picture_names(found)
    shown = {names[key]: own for key, own in found.items() if _worth_a_picture(own)}
    attempt = Attempts()
    changed = {row.identity for row in new}
    drawn: dict[str, bytes | None] = {}
    for name, own in shown.items():
        if not (docs / "results" / name).exists() or any(r.identity in changed for r in own):
            drawn[name] = attempt(name, partial(_picture, own))
    links = {name: f"results/{name}" for name in shown if drawn.get(name, b"") is not None}
    text = merge_text(before, render(rows, links), str(page))

    write_rows(store, rows)
    for name, picture in drawn.items():
        path = docs / "results" / name
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
    write_text(page, text)
    missing = "".join(f"; {name} is not drawn ({why})" for name, why in attempt.failed)
    return f"{store}: {len(rows)} rows ({added} new, {replaced} replaced); wrote {page}{missing}"


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


def _picture(rows: Sequence[Row]) -> bytes:
    return score_figure(score_plot(rows))


def _text(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{page}: not UTF-8 text: {error}.") from error


def _worth_a_picture(rows: Sequence[Row]) -> bool:
    points = {(row.method, row.nfe) for row in rows if row.metric == "fd" and row.nfe > 0}
    return len(points) > 1


if __name__ == "__main__":
    main()
