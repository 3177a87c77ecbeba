"""Common parts of figures: colours, canvas, and lines of scores against NFE.

Figures use the canvas of matplotlib without pyplot, so there is no window and no global state.
"""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ddistill.evaluation.figures.image_grids import drawable


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; `teachers` and `students` are used in order of appearance."""

    paper: str
    ink: str
    muted: str
    grid: str
    bars: str
    teachers: tuple[str, ...]
    students: tuple[str, ...]


LIGHT = Theme(
    "#ffffff", "#1f2430", "#667085", "#e6e9ef", "#dfe4ec",
    ("#8a94a6", "#5d7290", "#a38f7a", "#7d9183"),
    ("#d1495b", "#1f77b4", "#e08e0b", "#2a9d6f", "#7b4fb5", "#0f9bb0", "#9c5a2e", "#c2458f"),
)  # fmt: skip
DARK = Theme(
    "#161a22", "#e8ebf1", "#9aa4b5", "#2b313d", "#3a4251",
    ("#98a2b3", "#7f9cc4", "#c2a98d", "#93b09c"),
    ("#ff7a8a", "#62b0f0", "#ffbf52", "#56cf9f", "#b795f0", "#4fd0e2", "#d69465", "#f084c0"),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """The scores of one method against NFE.

    Attributes:
      label: label in the legend.
      nfe: [n] network evaluations per image, 1 or more.
      value: [n] scores; a logarithmic axis leaves out scores of 0.
      ranges: [n] ends (low, high) of error bars, or empty.
      role: "teacher" (muted line) or "student" (coloured line with markers).
    """

    label: str
    nfe: Sequence[float]
    value: Sequence[float]
    ranges: Sequence[tuple[float, float]] = ()
    role: str = "student"


def apart(lines: Sequence[Line]) -> list[Line]:
    """Shifts students at one NFE sideways, so that no marker hides another.

    The distance is 0.09 octaves, or less for many students, which share half an octave.
    """
    students = [line for line in lines if line.role != "teacher"]
    sharing = {n: [s for s in students if n in s.nfe] for line in lines for n in line.nfe}

    def moved(line: Line, n: float) -> float:
        others = sharing[n]
        gap = min(0.09, 0.5 / max(len(others) - 1, 1))
        place = next(i for i, other in enumerate(others) if other is line)
        return n * 2 ** (gap * (place - (len(others) - 1) / 2))

    return [
        line if line.role == "teacher" else replace(line, nfe=[moved(line, n) for n in line.nfe])
        for line in lines
    ]


def draw_line(axes: Axes, line: Line, index: int, theme: Theme):
    """Draws line number `index` of its role and returns the handle for the legend.

    From the ninth student on, colours repeat with hollow markers.
    """
    teacher = line.role == "teacher"
    points = sorted(
        (n, v, *(line.ranges[i] if line.ranges else (v, v)))
        for i, (n, v) in enumerate(zip(line.nfe, line.value, strict=True))
        if n > 0 and (v > 0 or axes.get_yscale() != "log")
    )
    x, y, low, high = (
        np.array(column, np.float64) for column in (zip(*points) if points else ((),) * 4)
    )
    palette = theme.teachers if teacher else theme.students
    color = palette[index % len(palette)]
    if teacher:
        dashes = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)))
        style: dict[str, Any] = {
            "lw": 1.8,
            "ls": dashes[index % 4],
            "marker": "s",
            "ms": 3.5,
            "zorder": 2,
        }
    else:
        marks, hollow = "oD^vPXsp", index // len(palette) % 2
        style = {"lw": 2.0, "ls": "-", "marker": marks[index % 8], "ms": 8, "zorder": 4}
        style |= {"mfc": theme.paper, "mec": color} if hollow else {"mec": theme.paper}
        style |= {"mew": 1.6 if hollow else 1.2}
    (handle,) = axes.plot(x, y, color=color, label=line.label, **style)
    if (high > low).any():
        # On a logarithmic axis an error bar must end above zero.
        below = np.minimum(y - low, 0.9 * y) if axes.get_yscale() == "log" else y - low
        axes.errorbar(
            x, y, yerr=[np.maximum(below, 0), np.maximum(high - y, 0)], fmt="none", ecolor=color,
            elinewidth=1.2, capsize=2.5, alpha=0.8, zorder=3,
        )  # fmt: skip
    return handle


def draw_floor(
    axes: Axes, floor: float, ends: tuple[float, float] | None, label: str, theme: Theme
) -> Artist | None:
    """Draws the score of real images, with its interval as a band, and returns the line.

    A floor far below all lines would compress them on a logarithmic axis; then only its value is
    written at the lower edge, and the result is None. The limits of the axis must not change
    afterwards, except for margins.
    """
    low, high = axes.get_ylim()
    logarithmic = axes.get_yscale() == "log"
    below = logarithmic and floor < low / 2
    if not below:
        low, high = min(low, floor), max(high, floor)
    axes.set_ylim(low, high)
    if ends is not None and ends[1] > low and ends[1] > ends[0]:
        axes.axhspan(
            max(ends[0], low / 2 if logarithmic else ends[0]), min(ends[1], high),
            color=theme.ink, alpha=0.08, lw=0, zorder=0.5,
        )  # fmt: skip
        axes.set_ylim(low, high)
    label = drawable(label)
    text = f"{label}: {floor:.3g}"
    if ends is not None and ends[1] > ends[0]:
        places = max(0, 1 - math.floor(math.log10((ends[1] - ends[0]) / 2)))
        value, first, last = (f"{number:.{places}f}" for number in (floor, *ends))
        text = f"{label}: {value} [{first}, {last}]"
    line = None
    if not below:
        line = axes.axhline(floor, color=theme.ink, lw=1.1, ls=(0, (1, 2)), zorder=1)
    axes.annotate(
        f"{text}, below this axis" if below else text,
        # Students with few steps are on the left.
        (0.995, low if below else floor),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=theme.ink,
        bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
        zorder=1.5,
    )
    return line


def nfe_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """Labels a logarithmic axis from the first to the last of `ticks` with powers of two."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if not ticks:
        return
    # NFE between powers of two (Heun: 2N - 1) get no tick, so that ticks are evenly spaced.
    low, high = math.floor(math.log2(ticks[0])), math.ceil(math.log2(ticks[-1]))
    kept = [2.0**i for i in range(low, high + 1)] if high - low <= 14 else [ticks[0], ticks[-1]]
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)


def value_axis(axes: Axes) -> None:
    """Labels a logarithmic axis with plain numbers, with a spacing that suits its range."""
    low, high = axes.get_ylim()
    ratio = high / max(low, 1e-300)
    if ratio < 2.5:  # almost linear, and hardly any of 1, 2, 5 is in the range
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        # The finest spacing with room for the labels.
        steps = {8: (1.0, 2.0, 3.0, 5.0, 7.0), 300: (1.0, 2.0, 5.0), 3000: (1.0, 3.0)}
        parts = next((p for most, p in steps.items() if ratio < most), (1.0,))
        axes.yaxis.set_major_locator(LogLocator(10, parts))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:.6g}" if 1e-3 <= abs(value) < 1e6 else f"{value:g}"


def wrapped(label: str) -> str:
    """Wraps a label of the legend into lines of at most 25 characters."""
    label = drawable(label)
    text = "\n".join(textwrap.wrap(label, 25)) or label
    # matplotlib before 3.10 leaves labels that begin with "_" out of a legend.
    return f" {text}" if text.startswith("_") else text


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """Creates an empty figure; sizes are in inches."""
    figure = Figure(figsize=(width, height), dpi=160, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def styled(theme: Theme):
    """Context manager with the matplotlib settings of a theme."""
    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9.5,
            # Names of users are not formulas.
            "text.parse_math": False,
            "text.color": theme.ink,
            "axes.facecolor": theme.paper,
            "axes.edgecolor": theme.muted,
            "axes.labelcolor": theme.muted,
            "axes.titlecolor": theme.ink,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "xtick.color": theme.muted,
            "ytick.color": theme.muted,
            "xtick.labelcolor": theme.ink,
            "ytick.labelcolor": theme.ink,
            "grid.color": theme.grid,
            "grid.linewidth": 0.9,
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "legend.labelcolor": theme.ink,
            "legend.labelspacing": 0.7,
        }
    )


def png(figure: Figure) -> bytes:
    """Renders a figure as a reproducible PNG."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return buffer.getvalue()
