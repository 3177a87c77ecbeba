"""report.html: the page with the results of a run.

    report = Report(title="SFDDM on digits", grids=[Grid(...)], plot=score_plot(rows), ...)
    write_report(folder, report)

The page is one file with embedded pictures; its links lead to files of the run beside it. The
pictures are also written to samples.png, fd_vs_nfe.png, strip.png, classes.png, curves.png and the
files that parts name.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ddistill.evaluation.attempts import Attempts
from ddistill.evaluation.figures import page
from ddistill.evaluation.figures.animation import Animation
from ddistill.evaluation.figures.image_grids import Grid, Strip, grid_image, strip_image, write_png
from ddistill.evaluation.figures.plots import (
    ClassChart,
    Curve,
    ScorePlot,
    classes_figure,
    curves_figure,
    score_figure,
)
from ddistill.evaluation.figures.style import DARK, LIGHT
from ddistill.evaluation.figures.tables import Table
from ddistill.evaluation.records.protocol import summarise
from ddistill.runtime.files import write_bytes, write_text

T = TypeVar("T")


@dataclass(frozen=True)
class Highlight:
    """A tile with one number, for example "3.1", "FD at 4 steps", "teacher: 9.8"."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure in a light and a dark theme, as PNG."""

    title: str
    light: bytes
    dark: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
      title: name of the part in messages.
      block: what is shown.
      file: file name of the picture beside the page; "" for tables.
    """

    title: str
    block: Sequence[Grid] | Table | Picture | Animation
    file: str = ""


@dataclass(frozen=True)
class Files:
    """Files of the run and commands to use them.

    Attributes:
      items: (path relative to the page or "" for no link, name, what is there).
      commands: (heading, commands).
    """

    items: Sequence[tuple[str, str, str]] = ()
    commands: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Report:
    """Contents of a report; empty parts are left out.

    Attributes:
      title: heading.
      subtitle: one or two sentences on teacher, students and data.
      command: command that reproduces the run.
      warnings: why the scores may mean little, shown before the scores.
      highlights: up to about four tiles.
      grids: samples from the same noise, one row per sampler.
      plot: FD against NFE.
      tables: tables, usually of scores and cost.
      strip: denoising of a few samples.
      parts: further parts, in order.
      classes: class histogram of the samples.
      curves: training losses, one subplot per stage.
      meanings: (label of a metric, what it measures).
      meanings_note: a sentence before them.
      files: files of the run and commands.
      config: the configuration; nested mappings become dotted keys.
      defaults: the configuration of the config file without flags; empty if it is not known.
      protocols: (sampler, protocol string) of the scores.
      provenance: further facts, for example machine, versions, data source.
      notes: paragraphs below the subtitle.
      failed: (heading, error) of parts that failed (`Attempts`).
    """

    title: str
    subtitle: str = ""
    command: str = ""
    warnings: Sequence[str] = ()
    highlights: Sequence[Highlight] = ()
    grids: Sequence[Grid] = ()
    plot: ScorePlot | None = None
    tables: Sequence[Table] = ()
    strip: Strip | None = None
    parts: Sequence[Part] = ()
    classes: ClassChart | None = None
    curves: Sequence[Curve] = ()
    meanings: Sequence[tuple[str, str]] = ()
    meanings_note: str = ""
    files: Files = Files()
    config: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    protocols: Sequence[tuple[str, str]] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
    failed: Sequence[tuple[str, str]] = ()


def write_report(
    folder: str | os.PathLike,
    report: Report,
    *,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Writes report.html and its pictures into `folder` and returns the path of the page.

    The page shows an error in place of a picture that fails.

    Args:
      folder: folder to write, created if necessary; files of an earlier report are replaced.
      report: contents of the page.
      say: receives a message about every part that failed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shared, own = summarise(report.protocols)
    tiles = [(h.value, h.label, h.note) for h in report.highlights]
    parts = [
        page.header(report.title, report.subtitle, report.notes, report.command),
        page.warnings(report.warnings),
    ]
    attempt = Attempts()
    parts += [page.tiles(tiles), *_pictures(folder, report, attempt)]
    parts.append(page.meanings(report.meanings, report.meanings_note))
    parts.append(page.files(report.files.items, report.files.commands))
    parts.append(page.protocol(shared, own))
    for title, why in [*report.failed, *attempt.failed]:
        if say is not None:
            say(f"report: '{title}' could not be drawn: {why}")
    parts.append(page.facts("Provenance", flatten(report.provenance)))
    parts.append(page.configuration(flatten(report.config), flatten(report.defaults)))
    path = folder / "report.html"
    write_text(path, page.document(report.title, page.with_contents(parts)))
    return path


def _pictures(folder: Path, report: Report, attempt: Attempts) -> list[str]:
    """Parts of the page: samples, plot, tables, strip, classes and curves."""

    def drawn(title: str, name: str, draw: Callable[[Path, T], list[str]], given: T) -> list[str]:
        path = folder / name
        made = attempt(title, lambda: draw(path, given))
        if made is None:  # remove the picture of an earlier report
            path.unlink(missing_ok=True)
        return [page.failure(*attempt.failed[-1])] if made is None else made

    parts: list[str] = []
    if report.grids:
        parts += drawn("Samples", "samples.png", _samples, report.grids)
    if report.plot is not None:
        parts += drawn(report.plot.title, "fd_vs_nfe.png", _plot, report.plot)
    parts += [page.table(t) for t in report.tables]
    if report.strip is not None:
        parts += drawn(report.strip.title, "strip.png", _strip, report.strip)
    for part in report.parts:
        if isinstance(part.block, Table):
            parts.append(page.table(part.block))
        else:
            parts += drawn(part.title, part.file, _part, part.block)
    if report.classes is not None:
        parts += drawn(report.classes.title, "classes.png", _classes, report.classes)
    if report.curves:
        parts += drawn("Training", "curves.png", _curves, report.curves)
    return parts + [page.failure(*failed) for failed in report.failed]


def _samples(path: Path, grids: Sequence[Grid]) -> list[str]:
    parts = [page.grid(g) for g in grids]
    write_png(path, grid_image(grids))
    return parts


def _part(path: Path, block: Sequence[Grid] | Picture | Animation) -> list[str]:
    if isinstance(block, Picture):
        write_bytes(path, block.light)
        return [page.figure(block.title, block.caption, block.light, block.dark, block.alt)]
    if isinstance(block, Animation):
        write_bytes(path, block.png)
        return [page.animation(block)]
    return _samples(path, block)


def _plot(path: Path, plot: ScorePlot) -> list[str]:
    pictures = score_figure(plot, LIGHT), score_figure(plot, DARK)
    write_bytes(path, pictures[0])
    return [page.figure(plot.title, plot.caption, *pictures, alt=page.plot_alt(plot))]


def _strip(path: Path, strip: Strip) -> list[str]:
    write_png(path, strip_image(strip))
    return [page.strip(strip)]


def _classes(path: Path, chart: ClassChart) -> list[str]:
    pictures = classes_figure(chart, LIGHT), classes_figure(chart, DARK)
    write_bytes(path, pictures[0])
    alt = "Share of each class among " + ", ".join(["real images", *chart.samplers])
    return [page.figure(chart.title, chart.caption, *pictures, alt=alt)]


def _curves(path: Path, curves: Sequence[Curve]) -> list[str]:
    pictures = curves_figure(curves, LIGHT), curves_figure(curves, DARK)
    write_bytes(path, pictures[0])
    stages = ", ".join(dict.fromkeys(c.stage for c in curves))
    caption = "Loss at every logged step (faint) and its running mean."
    return [page.figure("Training", caption, *pictures, alt=f"Losses of {stages}")]


def flatten(mapping: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flattens nested mappings to dotted keys, with values as text."""
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
