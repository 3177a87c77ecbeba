"""report.html: what a run made, to be opened and looked at.

    report = Report(title="SFDDM on digits", grids=[Grid(...)], plot=score_plot(rows), ...)
    write_report(folder, report)

The page is one file: pictures are inside it, nothing is loaded from anywhere. The pictures lie
beside it as well: samples.png, fd_vs_nfe.png, strip.png, classes.png, curves.png.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ddistill.evaluation import page
from ddistill.evaluation.drawing import DARK, LIGHT
from ddistill.evaluation.images import Grid, Strip, grid_image, sheet, strip_image
from ddistill.evaluation.plots import (
    ClassChart,
    Curve,
    ScorePlot,
    classes_figure,
    curves_figure,
    score_figure,
)
from ddistill.evaluation.protocol import summarise, write_text
from ddistill.evaluation.summary import Table


@dataclass(frozen=True)
class Highlight:
    """A number worth its own tile: value "3.1", label "FD at 4 steps", note "teacher: 9.8"."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All that a report shows; what is empty is left out.

    Attributes:
      title: heading.
      subtitle: one or two sentences: what was distilled into what, on which data.
      command: what to type to make it again.
      warnings: why the scores may mean little; shown before all of them.
      highlights: at most about four tiles.
      grids: samples from the same noise, a row a sampler.
      plot: FD against NFE.
      tables: usually one `summary.score_table`.
      strip: denoising of a few samples.
      classes: class histogram of the samples.
      curves: training losses, a panel a stage.
      config: summary of the configuration; nested mappings become dotted keys.
      protocols: (sampler, protocol string) of the numbers shown.
      provenance: further facts, for example machine, versions, data source.
      notes: paragraphs below the subtitle.
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
    classes: ClassChart | None = None
    curves: Sequence[Curve] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    protocols: Sequence[tuple[str, str]] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(
    folder: str | os.PathLike, report: Report, *, separate_grids: bool = False
) -> Path:
    """Writes report.html and its pictures into `folder` and returns the path of the page.

    Args:
      folder: made if it does not exist; files of an earlier report are replaced.
      report: what to show.
      separate_grids: also write every row of every grid alone, unlabelled, as
        images/GRID/ROW.png (`write_grids`).

    Raises:
      ValueError: rows, trajectories or classes that do not fit together, named.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        page.header(report.title, report.subtitle, report.notes, report.command),
        page.warnings(report.warnings),
        page.tiles([(h.value, h.label, h.note) for h in report.highlights]),
    ]
    if report.grids:
        _save(folder / "samples.png", grid_image(report.grids))
        parts += [page.grid(g) for g in report.grids]
    if report.plot is not None:
        pictures = score_figure(report.plot, LIGHT), score_figure(report.plot, DARK)
        (folder / "fd_vs_nfe.png").write_bytes(pictures[0])
        plot = report.plot
        parts.append(page.figure(plot.title, plot.caption, *pictures, alt=page.plot_alt(plot)))
    parts += [page.table(t) for t in report.tables]
    if report.strip is not None:
        _save(folder / "strip.png", strip_image(report.strip))
        parts.append(page.strip(report.strip))
    if report.classes is not None:
        pictures = classes_figure(report.classes, LIGHT), classes_figure(report.classes, DARK)
        (folder / "classes.png").write_bytes(pictures[0])
        chart = report.classes
        alt = "Share of each class among " + ", ".join(["real images", *chart.samplers])
        parts.append(page.figure(chart.title, chart.caption, *pictures, alt=alt))
    if report.curves:
        pictures = curves_figure(report.curves, LIGHT), curves_figure(report.curves, DARK)
        (folder / "curves.png").write_bytes(pictures[0])
        stages = ", ".join(dict.fromkeys(c.stage for c in report.curves))
        caption = "Loss at every logged step (faint) and its running mean."
        parts.append(page.figure("Training", caption, *pictures, alt=f"Losses of {stages}"))
    shared, own = summarise(report.protocols)
    parts.append(page.protocol(shared, own))
    parts.append(page.facts("Provenance", flatten(report.provenance)))
    parts.append(page.facts("Configuration", flatten(report.config), folded=True))
    if separate_grids:
        write_grids(folder / "images", report.grids)
    path = folder / "report.html"
    write_text(path, page.document(report.title, parts))
    return path


def write_grids(folder: str | os.PathLike, grids: Sequence[Grid]) -> list[Path]:
    """Writes every row of every grid as a sheet of images without labels: GRID/ROW.png."""
    paths = []
    for grid in grids:
        for row in grid.rows:
            path = Path(folder) / slug(grid.title) / f"{slug(row.label)}.png"
            if path in paths:
                raise ValueError(f"Two rows of grid '{grid.title}' are both called '{row.label}'.")
            _save(path, sheet(row.images))
            paths.append(path)
    return paths


def flatten(mapping: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys with their values as text."""
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def slug(text: str) -> str:
    """`text` as a file name: lower case letters, digits and single underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "untitled"


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
