"""Figures of a report: FD against NFE, training curves, class histograms.

Every figure is drawn from plain data, in a light and a dark theme, on matplotlib's own canvas
(no pyplot, no window, no global state).
"""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator


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
    """One method in the plot of FD against NFE.

    Attributes:
      label: in the legend.
      nfe: [n] network evaluations an image, 1 or more.
      value: [n] score, above 0 (points at 0 cannot lie on a logarithmic axis and are left out).
      spread: [n] standard deviation over seeds, or empty.
      role: "teacher" (muted line) or "student" (coloured, marked points).
    """

    label: str
    nfe: Sequence[float]
    value: Sequence[float]
    spread: Sequence[float] = ()
    role: str = "student"


@dataclass(frozen=True)
class ScorePlot:
    """FD against NFE, both logarithmic.

    Attributes:
      lines: at least one.
      floor: score of real data against real data, drawn as a line that nothing goes below.
      floor_label: what the floor is.
      ylabel: name of the score, for example `Protocol.label`.
      title: heading.
      caption: what to see in it.
    """

    lines: Sequence[Line]
    floor: float | None = None
    floor_label: str = "real data"
    ylabel: str = "FD"
    title: str = "Quality against network evaluations"
    caption: str = ""


@dataclass(frozen=True)
class Curve:
    """A loss over the steps of one stage; several curves of a stage share its panel.

    Attributes:
      stage: name of the stage, heading of the panel.
      steps: [n] increasing.
      losses: [n]; values that are not finite leave a gap.
      label: within the panel, for example "student 2"; empty for the only curve.
    """

    stage: str
    steps: Sequence[float]
    losses: Sequence[float]
    label: str = ""


@dataclass(frozen=True)
class ClassChart:
    """Share of the classes among samples, beside that of real images.

    Attributes:
      names: [K] names of the classes.
      real: [K] share among real images.
      samplers: label -> [K] share among its samples.
      title: heading.
      caption: what to see in it.
    """

    names: Sequence[str]
    real: Sequence[float]
    samplers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    title: str = "Classes of the samples"
    caption: str = ""


def score_figure(plot: ScorePlot, theme: Theme = LIGHT) -> bytes:
    """PNG of FD against NFE on logarithmic axes, legend on the right, best methods on top."""
    labels = [wrapped(line.label) for line in plot.lines]
    # Inches that the legend takes; the axes grow with it.
    height = max(4.9, 0.1 + sum(0.23 + 0.18 * text.count("\n") for text in labels))
    with styled(theme):
        figure = new_figure(9.2, height, theme)
        axes = figure.add_axes((0.075, 0.588 / height, 0.665, 1 - 0.71 / height))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        counts = {"teacher": 0, "student": 0}
        handles = []
        for line in plot.lines:
            role = "teacher" if line.role == "teacher" else "student"
            handles.append(draw_line(axes, line, role, counts[role], theme))
            counts[role] += 1
        ticks = sorted({n for line in plot.lines for n in line.nfe if n > 0})
        nfe_axis(axes, ticks)
        value_axis(axes)
        if plot.floor is not None and plot.floor > 0:
            axes.axhline(plot.floor, color=theme.ink, lw=1, ls=(0, (1, 2)), zorder=1)
            axes.annotate(
                f"{plot.floor_label}: {plot.floor:.3g}",
                (0.005, plot.floor),
                xycoords=("axes fraction", "data"),
                xytext=(2, 4),
                textcoords="offset points",
                fontsize=9,
                color=theme.ink,
                bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0},
                zorder=1.5,
            )
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.15, high * 1.1)
        axes.set_xlabel("network evaluations an image (NFE)")
        axes.set_ylabel(f"{plot.ylabel}, lower is better")
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
    """PNG of the losses, a panel a stage: measured values faint, their running mean on top."""
    if not curves:
        raise ValueError("No curves to draw.")
    stages = list(dict.fromkeys(curve.stage for curve in curves))
    columns = {1: 1, 2: 2, 4: 2}.get(len(stages), 3)
    rows = math.ceil(len(stages) / columns)
    with styled(theme):
        figure = new_figure(9.2 if columns > 1 else 6.4, 2.75 * rows + 0.15, theme)
        grid = figure.subplots(rows, columns, squeeze=False)
        for panel, axes in enumerate(grid.flat):
            if panel >= len(stages):
                axes.set_visible(False)
                continue
            own = [curve for curve in curves if curve.stage == stages[panel]]
            for i, curve in enumerate(own):
                _draw_curve(axes, curve, theme.students[(1 + i) % len(theme.students)], len(own))
            axes.set_title(stages[panel], loc="left", fontsize=11, fontweight="bold", pad=8)
            axes.set_xlabel("step")
            axes.set_ylabel("loss" if panel % columns == 0 else "")
            axes.grid(True, axis="y", which="major")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(_step_label(own)))
            if any(curve.label for curve in own):
                axes.legend(loc="upper right", fontsize=8.5, ncol=1 + (len(own) > 4))
        figure.tight_layout(w_pad=1.6, h_pad=1.4)
        return png(figure)


def classes_figure(chart: ClassChart, theme: Theme = LIGHT) -> bytes:
    """PNG of class shares: bars for real images, a dot for every sampler on top of them."""
    real = np.asarray(chart.real, np.float64) * 100
    count = len(chart.names)
    for label, shares in (("real", chart.real), *chart.samplers.items()):
        if len(shares) != count:
            raise ValueError(f"'{label}' has {len(shares)} shares for {count} classes.")
    with styled(theme):
        # Long names are tilted, and need room below the axes.
        tilt = max(len(str(name)) for name in chart.names) * count > 80
        room = 0.75 if tilt else 0.4
        figure = new_figure(9.2, 2.9 + room, theme)
        axes = figure.add_axes((0.075, room / (2.9 + room), 0.665, 2.75 / (2.9 + room)))
        x = np.arange(count)
        axes.bar(x, real, width=0.84, color=theme.bars, label="real images", zorder=1)
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
            axes.plot(
                at, values, ls="", marker="s" if teacher else "o", ms=5.5, color=color,
                label=label, zorder=3,
            )  # fmt: skip
        axes.set_xticks(
            x, [str(n) for n in chart.names], rotation=35 if tilt else 0,
            ha="right" if tilt else "center",
        )  # fmt: skip
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.6, count - 0.4)
        axes.set_ylabel("share of the samples, %")
        axes.grid(True, axis="y")
        handles, names = axes.get_legend_handles_labels()
        first = names.index("real images")
        order = [first, *(i for i in range(len(names)) if i != first)]
        axes.legend(
            [handles[i] for i in order], [wrapped(names[i]) for i in order],
            loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0,
        )  # fmt: skip
        return png(figure)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over `window` values, shorter at the ends; non-finite values left out.

    A window without any finite value gives NaN, which a plot shows as a gap.
    """
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low = np.maximum(index - window // 2, 0)
    high = np.minimum(index + window // 2 + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def draw_line(axes: Axes, line: Line, role: str, index: int, theme: Theme):
    """Draws the line number `index` of its role and returns its handle for the legend."""
    points = sorted(
        (n, v, line.spread[i] if line.spread else 0.0)
        for i, (n, v) in enumerate(zip(line.nfe, line.value, strict=True))
        if n > 0 and (v > 0 or axes.get_yscale() != "log")
    )
    x, y, spread = (
        np.array(column, np.float64) for column in (zip(*points) if points else ((),) * 3)
    )
    palette = theme.teachers if role == "teacher" else theme.students
    color = palette[index % len(palette)]
    if role == "teacher":
        dashes = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)))
        style: dict[str, Any] = {
            "lw": 1.8,
            "ls": dashes[index % 4],
            "marker": "s",
            "ms": 3.5,
            "zorder": 2,
        }
    else:
        marks = "oD^vPXsp"
        style = {"lw": 2.0, "ls": "-", "marker": marks[index % 8], "ms": 8, "zorder": 4}
        style |= {"mec": theme.paper, "mew": 1.2}
    (handle,) = axes.plot(x, y, color=color, label=line.label, **style)
    if spread.any():
        low = np.minimum(spread, 0.9 * y)  # an error bar through zero has no place on a log axis
        axes.errorbar(
            x, y, yerr=[low, spread], fmt="none", ecolor=color, elinewidth=1.2, capsize=2.5,
            alpha=0.8, zorder=3,
        )  # fmt: skip
    return handle


def _draw_curve(axes: Axes, curve: Curve, color: str, siblings: int) -> None:
    steps = np.asarray(curve.steps, np.float64)
    losses = np.asarray(curve.losses, np.float64)
    if len(steps) != len(losses):
        raise ValueError(
            f"Curve '{curve.stage} {curve.label}' has {len(steps)} steps, {len(losses)} losses."
        )
    mean = smooth(losses, max(1, len(losses) // 20, min(9, len(losses) // 4)))
    if siblings <= 4:
        axes.plot(steps, losses, color=color, lw=0.8, alpha=0.28)
    axes.plot(steps, mean, color=color, lw=1.9, label=curve.label or None)
    positive = losses[np.isfinite(losses)]
    if positive.size and positive.min() > 0 and positive.max() > 10 * positive.min():
        axes.set_yscale("log")
        value_axis(axes)


def nfe_axis(axes: Axes, ticks: Sequence[float]) -> None:
    """Plain powers of two on a logarithmic axis from the first of `ticks` to the last."""
    if not ticks:
        return
    # Powers of two even where a sampler (Heun: 2N - 1) lies between them: few, evenly spaced.
    low, high = math.floor(math.log2(ticks[0])), math.ceil(math.log2(ticks[-1]))
    kept = [2.0**i for i in range(low, high + 1)] if high - low <= 14 else [ticks[0], ticks[-1]]
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)


def value_axis(axes: Axes) -> None:
    """Plain numbers on a logarithmic axis, at steps as fine as its range asks for."""
    low, high = axes.get_ylim()
    ratio = high / max(low, 1e-300)
    if ratio < 2.5:  # hardly any of 1, 2, 5 lies within: as good as linear
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        # The finest of these that leaves room for its labels.
        steps = {8: (1.0, 2.0, 3.0, 5.0, 7.0), 300: (1.0, 2.0, 5.0), 3000: (1.0, 3.0)}
        parts = next((p for most, p in steps.items() if ratio < most), (1.0,))
        axes.yaxis.set_major_locator(LogLocator(10, parts))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:.6g}" if 1e-3 <= abs(value) < 1e6 else f"{value:g}"


def wrapped(label: str) -> str:
    """A label of the legend in lines of at most 25 characters."""
    return "\n".join(textwrap.wrap(label, 25)) or label


def _step_label(curves: Sequence[Curve]) -> Callable[[float, int | None], str]:
    thousands = max((max(c.steps, default=0) for c in curves), default=0) >= 10_000
    if thousands:
        return lambda value, _=None: f"{value / 1000:g}k" if value else "0"
    return lambda value, _=None: f"{value:g}"


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=160, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def styled(theme: Theme):
    """The context in which a figure of this theme is drawn."""
    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9.5,
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
    """The figure as a PNG that is the same each time."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return buffer.getvalue()
