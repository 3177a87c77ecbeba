"""python -m ddistill.compare RUN... [--out comparison] [--nfe 1,2,4,8]: compares finished runs.

A RUN is the folder of a finished run. Runs of one config with different --config.seed give mean and
spread; runs of different configs have separate lines. All runs need the same data, noise,
labels, number of samples and feature network. The folder --out receives compare.html (one file
without links), compare.md, compare.json, and the pictures scores_vs_nfe.png and samples.png. --nfe
chooses the columns of the tables by NFE and the rows of the samples.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ddistill.command_line import Parser, one_line_ending
from ddistill.data.facts import IDENTIFIED
from ddistill.errors import ConfigError, nearest
from ddistill.evaluation.attempts import Attempts
from ddistill.evaluation.comparison import tables
from ddistill.evaluation.comparison.checks import check_runs
from ddistill.evaluation.comparison.join import Comparison, FinishedRun, Source, join_runs
from ddistill.evaluation.comparison.run_identity import teachers_of
from ddistill.evaluation.figures import page
from ddistill.evaluation.figures.image_grids import Grid, grid_image, write_png
from ddistill.evaluation.figures.style import DARK, LIGHT
from ddistill.evaluation.figures.subplots import SubplotFigure, subplots_alt, subplots_figure
from ddistill.evaluation.figures.tables import Table
from ddistill.evaluation.records.environment import command_string, portable
from ddistill.evaluation.records.names import DISTANCES, METHODS
from ddistill.evaluation.records.notes import warning_notes
from ddistill.evaluation.records.rows import read_rows
from ddistill.evaluation.records.sampler_runs import EarlierVersion, read_sampler_runs
from ddistill.evaluation.report.results_md import markdown
from ddistill.interop.sources import read_noted
from ddistill.planning.opened import import_extensions
from ddistill.planning.planner import SOURCES
from ddistill.runtime.files import (
    DamagedFile,
    expand,
    read_arrays,
    read_object,
    read_object_or_none,
    write_bytes,
    write_text,
)
from ddistill.runtime.leftovers import remove_leftovers
from ddistill.text import code_span, printable
from ddistill.text import markdown as escaped

_FILES = ("config.json", "results.json", "evaluation.json")
_AGAIN = "Give the run's command again: it keeps what is trained and sampled and makes the rest."
_PLOT, _SAMPLES = "scores_vs_nfe.png", "samples.png"


@one_line_ending()
def main(argv: Sequence[str] | None = None, program: str = "python -m ddistill.compare") -> None:
    """Entry point of the command line; exit status 1 with a message if runs are not comparable."""
    parser = Parser(program, "One table, plot and page of several runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", default="comparison", help="folder to write (default: comparison)")
    parser.add_argument(
        "--nfe",
        default="1,2,4,8",
        help="network evaluations per image, the columns of the tables (default: 1,2,4,8)",
    )
    options = parser.parse_all(argv)
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = command_string(["compare", *arguments], program)
    print(printable(compare(options.runs, options.out, _counts(options.nfe), command)))


def compare(
    runs: Sequence[str | Path],
    out: str | Path = "comparison",
    nfe: Sequence[int] = (1, 2, 4, 8),
    command: str = "",
) -> str:
    """Compares finished runs and writes page, tables, numbers and pictures into `out`.

    The function reads and checks everything before it writes.

    Args:
      runs: folders of finished runs.
      out: folder to write, created if necessary; replaces an earlier comparison.
      nfe: network evaluations per image in the tables by NFE and in the rows of samples.
      command: the command, shown on the page.

    Returns:
      One line that names the written page.

    Raises:
      ConfigError: a run is not finished, runs are not comparable, or no run has one of `nfe`.
      ValueError: a file of a run is malformed; the message names it.
    """
    found = [load_run(run) for run in runs]
    check_runs(found)
    made = join_runs(found, teachers_of(found))
    counts = tables.chosen_nfe(made, nfe)
    blocks = [tables.matrix(made, metric, counts) for metric in tables.main_metrics(made)]
    blocks += tables.score_tables(made)
    plot, grid = tables.subplot_figure(made), tables.sample_grid(made, counts, load_images)
    attempt = Attempts()
    pictures = attempt(
        plot.title, lambda: (subplots_figure(plot, LIGHT), subplots_figure(plot, DARK))
    )
    if pictures is None:
        figure = page.failure(*attempt.failed[-1])
    else:
        figure = page.figure(plot.title, plot.caption, *pictures, alt=subplots_alt(plot))
    samples = attempt(grid.title, lambda: (grid_image([grid]), page.grid(grid)))
    images = page.failure(*attempt.failed[-1]) if samples is None else samples[1]

    folder = expand(out)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    for name, drawn in ((_PLOT, pictures), (_SAMPLES, samples)):
        if drawn is None:
            (folder / name).unlink(missing_ok=True)
    if pictures is not None:
        write_bytes(folder / _PLOT, pictures[0])
    if samples is not None:
        write_png(folder / _SAMPLES, samples[0])
    content = json.dumps(tables.as_data(made, command), indent=1, allow_nan=False)
    write_text(folder / "compare.json", content + "\n")
    write_text(folder / "compare.md", _markdown(made, command, blocks, plot, grid))
    path = folder / "compare.html"
    write_text(path, _html(made, command, counts, blocks, figure, images))
    missing = "".join(f"; '{title}' is not drawn ({why})" for title, why in attempt.failed)
    return f"{path}: {_count(found, 'run')}, {_count(made.names, 'method')}{missing}"


def load_run(folder: str | Path) -> FinishedRun:
    """Reads the folder of a finished run.

    Raises:
      ConfigError: the folder does not exist, or the run is not finished or not scored.
      ValueError: a file is malformed; the message names it.
    """
    path = expand(folder)
    if not path.is_dir():
        siblings = (
            [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        )
        raise ConfigError(
            f"{folder} is no folder of a run.{nearest(path.name, siblings)} Give the folders of "
            "finished runs, for example runs/sfddm_digits."
        )
    missing = [name for name in _FILES if not (path / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} is not finished: it has no {' and no '.join(missing)}. {_AGAIN}"
        )
    try:
        sampler_runs = read_sampler_runs(path / "evaluation.json")
    except EarlierVersion as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(f"{error} {_AGAIN}") from error
    import_extensions(path)
    rows = read_rows(path / "results.json")
    if not sampler_runs or not any(row.metric in DISTANCES and row.nfe for row in rows):
        raise ConfigError(
            f"{folder} has no scores: it has no classifier stage in config.evaluation.classifier, "
            "and no other features in config.evaluation.features. Set one of them and give the "
            "run's command again."
        )
    facts = read_object_or_none(path / "data.json", IDENTIFIED) or {}
    return FinishedRun(
        folder=str(folder),
        rows=tuple(rows),
        sampler_runs=tuple(sampler_runs),
        config=_config(path / "config.json"),
        identity=facts.get("identity", {}),
        sources={n: found.digest for n, (_, found) in read_noted(path / SOURCES).items()},
    )


def load_images(source: Source) -> np.ndarray:
    """The samples `[N, H, W, C]` of a source.

    Raises:
      ConfigError: the file is missing or damaged.
    """
    path = Path(source.run.folder) / "samples" / f"{source.sampler_run.key}.npz"
    found = read_arrays(path, ("images",))
    if found is None:
        raise ConfigError(
            f"{path} cannot be read (missing or damaged). Delete evaluation.json of "
            f"{source.run.folder} and give the run's command again: it samples the missing images."
        )
    return found["images"]


def _config(path: Path) -> Mapping[str, object]:
    try:
        return read_object(path)
    except DamagedFile as error:
        raise ConfigError(f"{error}. {_AGAIN}") from None


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"--nfe={text!r} must be whole numbers above 0 with commas between, as in 1,2,4,8."
        )
    return sorted({int(part) for part in parts})


def _html(
    made: Comparison,
    command: str,
    counts: Sequence[int],
    blocks: Sequence[Table],
    figure: str,
    images: str,
) -> str:
    title = _title(made)
    warnings = warning_notes(row for run in made.runs for row in run.rows)
    parts = [
        page.header(title, _lead(made), [n for n in made.notes if n not in warnings], command),
        page.warnings(warnings),
        page.tiles(tables.tiles(made, counts)),
        figure,
        *(page.table(block) for block in blocks),
        images,
        page.protocol(*tables.protocols(made)),
        page.facts("Runs", _runs(made)),
        page.facts("Machines", _machines(made)),
    ]
    return page.document(title, parts)


def _markdown(
    made: Comparison, command: str, blocks: Sequence[Table], plot: SubplotFigure, grid: Grid
) -> str:
    parts = [f"# {escaped(_title(made))}", escaped(_lead(made)), *map(escaped, made.notes)]
    parts += [f"    {printable(command)}"] if command else []
    parts += [f"## {plot.title}", f"![{plot.title}]({_PLOT})", plot.caption]
    for block in blocks:
        parts += [f"## {block.title}", markdown(block), block.caption]
    parts += [f"## {grid.title}", f"![{grid.title}]({_SAMPLES})", grid.caption]
    shared, own = tables.protocols(made)
    lines = [f"- all: `{shared}`"] if shared else []
    lines += [f"- {escaped(label)}: {code_span(text)}" for label, text in own]
    for heading, items in (("Protocol", lines), ("Runs", _bullets(_runs(made)))):
        parts += [f"## {heading}", "\n".join(items)]
    parts += ["## Machines", "\n".join(_bullets(_machines(made)))]
    return "\n\n".join(parts) + "\n"


def _bullets(items: Mapping[str, str]) -> list[str]:
    return [f"- {escaped(key)}: {escaped(text)}" for key, text in items.items()]


def _title(made: Comparison) -> str:
    names = made.experiments
    return (
        f"Comparison: {', '.join(names)}"
        if len(names) <= 3
        else f"Comparison of {len(names)} experiments"
    )


def _lead(made: Comparison) -> str:
    protocol, seeds = made.runs[0].protocol, sorted({run.seed for run in made.runs})
    methods = ", ".join(
        dict.fromkeys(METHODS[e.method].label for e in made.names if e.role != "real")
    )
    return (
        f"{methods[:1].upper()}{methods[1:]} on {made.rows[0].data}: {protocol.samples} samples "
        f"of each from the same noise, scored in the features of {protocol.features} against "
        f"{protocol.reference_n} training images. {_count(made.runs, 'run')}, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
    )


def _runs(made: Comparison) -> dict[str, str]:
    return {
        f"{run.experiment}, seed {run.seed}": f"{portable(run.folder)}, features by weights "
        f"{run.protocol.features_hash}: {'; '.join(sorted({row.command for row in run.rows}))}"
        for run in made.runs
    }


def _machines(made: Comparison) -> dict[str, str]:
    """Machine -> runs with numbers measured on it."""
    found: dict[str, list[str]] = {}
    for run in made.runs:
        for machine in dict.fromkeys(row.machine for row in run.rows):
            found.setdefault(machine, []).append(f"{run.experiment}, seed {run.seed}")
    return {machine: "; ".join(titles) for machine, titles in found.items()}


def _count(items: Sequence | Mapping, noun: str) -> str:
    return f"{len(items)} {noun}{'s' if len(items) != 1 else ''}"


if __name__ == "__main__":
    main()
