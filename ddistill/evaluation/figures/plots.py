"""Figures of a report: FD against NFE, training curves, class histograms."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ddistill.evaluation.figures.image_grids import drawable
from ddistill.evaluation.figures.style import (
    LIGHT,
    Line,
    Theme,
    apart,
    draw_floor,
    draw_line,
    new_figure,
    nfe_axis,
    png,
    styled,
    value_axis,
    wrapped,
)
from ddistill.text import distinct

_LONGEST_CLASS = 18  # characters of a rotated class name that fit below the axes


@dataclass(frozen=True)
class ScorePlot:
    """FD against NFE, both logarithmic.

    Attributes:
      lines: at least one line.
      floor: score of test images, drawn as a horizontal line.
      floor_range: interval or spread of the floor, (low, high).
      floor_label: label of the floor.
      ylabel: name of the score, for example `Protocol.label`.
      title: heading.
      caption: caption.
    """

    lines: Sequence[Line]
    floor: float | None = None
    floor_range: tuple[float, float] | None = None
    floor_label: str = "real data"
    ylabel: str = "FD"
    title: str = "Quality against network evaluations"
    caption: str = ""


@dataclass(frozen=True)
class Curve:
    """A loss over the steps of one stage; the curves of a stage share a subplot.

    Attributes:
      stage: name of the stage, title of the subplot.
      steps: [n] increasing.
      losses: [n]; values that are not finite leave a gap.
      label: label in the legend, for example "student 2"; "" for a single curve.
    """

    stage: str
    steps: Sequence[float]
    losses: Sequence[float]
    label: str = ""


@dataclass(frozen=True)
class ClassChart:
    """Shares of the classes among samples and real images.

    Attributes:
      names: [K] names of the classes.
      real: [K] share among real images.
      samplers: label -> [K] share among the samples.
      title: heading.
      caption: caption.
    """

    names: Sequence[str]
    real: Sequence[float]
    samplers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    title: str = "Classes of the samples"
    caption: str = ""


def score_figure(plot: ScorePlot, theme: Theme = LIGHT) -> bytes:
    """Draws FD against NFE on logarithmic axes and returns the PNG."""
    labels = [wrapped(line.label) for line in plot.lines]
    # Height of the legend in inches; the axes are as high.
    height = max(4.9, 0.1 + sum(0.23 + 0.18 * text.count("\n") for text in labels))
    with styled(theme):
        figure = new_figure(9.2, height, theme)
        axes = figure.add_axes((0.075, 0.588 / height, 0.665, 1 - 0.71 / height))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        counts = {"teacher": 0, "student": 0}
        handles = []
        for line in apart(plot.lines):
            role = "teacher" if line.role == "teacher" else "student"
            handles.append(draw_line(axes, line, counts[role], theme))
            counts[role] += 1
        ticks = sorted({n for line in plot.lines for n in line.nfe if n > 0})
        nfe_axis(axes, ticks)
        value_axis(axes)
        if plot.floor is not None:
            draw_floor(axes, plot.floor, plot.floor_range, plot.floor_label, theme)
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.15, high * 1.1)
        axes.set_xlabel("network evaluations per image (NFE)")
        axes.set_ylabel(f"{drawable(plot.ylabel)}, lower is better")
        axes.grid(True, axis="y", which="major")
        order = sorted(range(len(handles)), key=lambda i: plot.lines[i].role != "teacher")
        axes.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="upper left",
            bbox_to_anchor=(1.02, 1.02),
            borderaxespad=0,
        )
        return png(figure)


def curves_figure(curves: Sequence[Curve], theme: Theme = LIGHT) -> bytes:
    """Draws losses and their running means, one subplot per stage, and returns the PNG."""
    if not curves:
        raise ValueError("No curves to draw.")
    stages = list(dict.fromkeys(curve.stage for curve in curves))
    columns = {1: 1, 2: 2, 4: 2}.get(len(stages), 3)
    rows = math.ceil(len(stages) / columns)
    with styled(theme):
        figure = new_figure(9.2 if columns > 1 else 6.4, 2.75 * rows + 0.15, theme)
        grid = figure.subplots(rows, columns, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(stages):
                axes.set_visible(False)
                continue
            own = [curve for curve in curves if curve.stage == stages[index]]
            lines = [
                _draw_curve(axes, curve, theme.students[(1 + i) % len(theme.students)], len(own))
                for i, curve in enumerate(own)
            ]
            title = drawable(stages[index], 40)
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=8)
            axes.set_xlabel("step")
            axes.set_ylabel("loss" if index % columns == 0 else "")
            axes.grid(True, axis="y", which="major")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(_step_label(own)))
            named = [(line, c.label) for line, c in zip(lines, own) if c.label]
            if named:
                axes.legend(
                    [line for line, _ in named], [drawable(label, 30) for _, label in named],
                    loc="upper right", fontsize=8.5, ncol=1 + (len(own) > 4),
                )  # fmt: skip
        figure.tight_layout(w_pad=1.6, h_pad=1.4)
        return png(figure)


def classes_figure(chart: ClassChart, theme: Theme = LIGHT) -> bytes:
    """Draws class shares, with bars for real images and a dot per sampler; returns the PNG."""
    real = np.asarray(chart.real, np.float64) * 100
    count = len(chart.names)
    for label, shares in (("real", chart.real), *chart.samplers.items()):
        if len(shares) != count:
            raise ValueError(f"'{label}' has {len(shares)} shares for {count} classes.")
    with styled(theme):
        # Long names are rotated, and need room below the axes.
        names = distinct(drawable(name, _LONGEST_CLASS) for name in chart.names)
        tilt = max(map(len, names), default=0) * count > 80
        room = 0.75 if tilt else 0.4
        figure = new_figure(9.2, 2.9 + room, theme)
        axes = figure.add_axes((0.075, room / (2.9 + room), 0.665, 2.75 / (2.9 + room)))
        x = np.arange(count)
        handles: list[Artist | BarContainer] = [
            axes.bar(x, real, width=0.84, color=theme.bars, zorder=1)
        ]
        offsets = np.linspace(-0.27, 0.27, max(len(chart.samplers), 1))
        if len(chart.samplers) <= 1:
            offsets = np.zeros(1)
        teachers = 0
        for i, (label, shares) in enumerate(chart.samplers.items()):
            teacher = "teacher" in label.lower()
            teachers += teacher
            palette = theme.teachers if teacher else theme.students
            color = palette[(teachers - 1 if teacher else i - teachers) % len(palette)]
            values = np.asarray(shares, np.float64) * 100
            at = x + offsets[i]
            axes.vlines(at, 0, values, color=color, lw=1.4, alpha=0.55, zorder=2)
            handles += axes.plot(
                at, values, ls="", marker="s" if teacher else "o", ms=5.5, color=color, zorder=3
            )
        axes.set_xticks(
            x, names, rotation=35 if tilt else 0,
            ha="right" if tilt else "center",
        )  # fmt: skip
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, count - 0.4)
        axes.set_ylabel("share of the samples, %")
        axes.grid(True, axis="y")
        axes.legend(
            handles, [wrapped(label) for label in ("real images", *chart.samplers)],
            loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0,
        )  # fmt: skip
        return png(figure)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over `window` values, fewer at the ends, without non-finite values.

    A window without finite values gives NaN, which is a gap in a plot.
    """
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low = np.maximum(index - window // 2, 0)
    high = np.minimum(index + window // 2 + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _draw_curve(axes: Axes, curve: Curve, color: str, siblings: int) -> Line2D:
    steps = np.asarray(curve.steps, np.float64)
    losses = np.asarray(curve.losses, np.float64)
    if len(steps) != len(losses):
        raise ValueError(
            f"Curve '{curve.stage} {curve.label}' has {len(steps)} steps, {len(losses)} losses."
        )
    mean = smooth(losses, max(1, len(losses) // 20, min(9, len(losses) // 4)))
    if siblings <= 4:
        axes.plot(steps, losses, color=color, lw=0.8, alpha=0.28)
    (line,) = axes.plot(steps, mean, color=color, lw=1.9)
    positive = losses[np.isfinite(losses)]
    if positive.size and positive.min() > 0 and positive.max() > 10 * positive.min():
        axes.set_yscale("log")
        value_axis(axes)
    return line


def _step_label(curves: Sequence[Curve]) -> Callable[[float, int | None], str]:
    thousands = max((max(c.steps, default=0) for c in curves), default=0) >= 10_000
    if thousands:
        return lambda value, _=None: f"{value / 1000:g}k" if value else "0"
    return lambda value, _=None: f"{value:g}"
