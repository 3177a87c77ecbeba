"""A figure of several scores against NFE: one large and up to two small subplots, one legend."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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

_MOST = 3  # subplots in a figure
_MARK = 6  # marker size in points, smaller than in a single plot


@dataclass(frozen=True)
class Subplot:
    """One score against NFE.

    Attributes:
      title: name of the score.
      better: "lower" or "higher".
      lines: one line per sampler; lines with equal labels look alike in all subplots.
      floor: score of real test images, drawn as a dotted line; None for no line.
      floor_range: interval or spread of the floor, (low, high).
      logarithmic: whether the axis of the score is logarithmic.
    """

    title: str
    better: str
    lines: Sequence[Line]
    floor: float | None = None
    floor_range: tuple[float, float] | None = None
    logarithmic: bool = False


@dataclass(frozen=True)
class SubplotFigure:
    """Subplots with a common legend below.

    Attributes:
      subplots: one to three subplots; the first is the largest.
      floor_label: label of the floor.
      title: heading.
      caption: caption.
    """

    subplots: Sequence[Subplot]
    floor_label: str = "real test images"
    title: str = "Quality against network evaluations"
    caption: str = ""


def subplots_figure(plot: SubplotFigure, theme: Theme = LIGHT) -> bytes:
    """Draws the subplots with logarithmic NFE and returns the PNG.

    Raises:
      ValueError: there are no subplots, or more than three.
    """
    if not 1 <= len(plot.subplots) <= _MOST:
        raise ValueError(f"{len(plot.subplots)} subplots; one figure holds 1 to {_MOST}.")
    order = _order(plot.subplots)
    legend_rows = math.ceil((len(order) + 1) / 3)
    legend_height = 0.15 + 0.24 * legend_rows
    with styled(theme):
        figure = new_figure(9.2, 5.9 + legend_height, theme)
        handles: dict[str, Artist] = {}
        for axes, subplot in zip(_axes(figure, len(plot.subplots), legend_height), plot.subplots):
            handles |= _draw(axes, subplot, order, theme)
            floor = _floor(axes, subplot, plot.floor_label, theme)
            if floor is not None:
                handles.setdefault("", floor)
        labels = [label for label in order if label in handles]
        texts = [wrapped(label) for label in labels]
        if "" in handles:
            labels.append("")
            texts.append(drawable(plot.floor_label))
        figure.legend(
            [handles[label] for label in labels],
            texts,
            loc="lower center",
            bbox_to_anchor=(0.5, 0.0),
            ncol=min(3, len(labels)),
            columnspacing=2.5,
            handlelength=2.6,
        )
        return png(figure)


def subplots_alt(plot: SubplotFigure) -> str:
    """Alternative text of the figure."""
    parts = []
    for subplot in plot.subplots:
        lines = "; ".join(
            f"{line.label}: "
            + ", ".join(f"{v:.3g} at {n:g}" for n, v in zip(line.nfe, line.value, strict=True))
            for line in subplot.lines
        )
        floor = "" if subplot.floor is None else f"; {plot.floor_label}: {subplot.floor:.3g}"
        parts.append(f"{subplot.title} against network evaluations. {lines}{floor}")
    return ". ".join(parts)


def _order(subplots: Sequence[Subplot]) -> dict[str, tuple[str, int]]:
    """Returns label -> (role, index within the role), in the order of the legend."""
    roles: dict[str, str] = {}
    for subplot in subplots:
        for line in subplot.lines:
            roles.setdefault(line.label, "teacher" if line.role == "teacher" else "student")
    return {
        label: (role, index)
        for role in ("teacher", "student")
        for index, label in enumerate(name for name in roles if roles[name] == role)
    }


def _axes(figure: Figure, count: int, legend: float) -> list[Axes]:
    """Axes above `legend` inches: the first on the left, the others stacked on the right."""
    height = figure.get_figheight()
    bottom = (legend + 0.55) / height
    top = 1 - 0.35 / height
    if count == 1:
        return [figure.add_axes((0.075, bottom, 0.9, top - bottom))]
    places = [figure.add_axes((0.07, bottom, 0.45, top - bottom))]
    space = 0.85 / height
    each = (top - bottom - space * (count - 2)) / (count - 1)
    for i in range(count - 1):
        low = top - (i + 1) * each - i * space
        places.append(figure.add_axes((0.6, low, 0.385, each)))
    return places


def _draw(
    axes: Axes, subplot: Subplot, order: dict[str, tuple[str, int]], theme: Theme
) -> dict[str, Artist]:
    axes.set_xscale("log", base=2)
    if subplot.logarithmic:
        axes.set_yscale("log")
    handles: dict[str, Artist] = {}
    for line in apart(subplot.lines):
        role, index = order[line.label]
        handles[line.label] = draw_line(axes, line, index, theme)
        if role == "student":
            handles[line.label].set(markersize=_MARK)
    ticks = sorted({n for line in subplot.lines for n in line.nfe if n > 0})
    nfe_axis(axes, ticks)
    title = f"{drawable(subplot.title)}, {subplot.better} is better"
    axes.set_title(title, loc="left", fontsize=10.5, pad=8)
    axes.set_xlabel("network evaluations per image (NFE)")
    axes.grid(True, axis="y", which="major")
    return handles


def _floor(axes: Axes, subplot: Subplot, label: str, theme: Theme) -> Artist | None:
    """Draws the floor and sets the axis of the score; returns None without a line."""
    line = None
    if subplot.floor is not None:
        line = draw_floor(axes, subplot.floor, subplot.floor_range, label, theme)
    low, high = axes.get_ylim()
    if subplot.logarithmic:
        axes.set_ylim(low / 1.15, high * 1.15)
        value_axis(axes)
    else:
        # A share is in [0, 1]; the margin keeps markers at its ends complete.
        axes.set_ylim(max(low, -0.03), high + 0.1 * (high - low))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    return line
