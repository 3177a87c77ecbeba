"""A figure of distributions: for every distance, the share of images that are at most that far."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist

from ddistill.evaluation.figures.image_grids import drawable
from ddistill.evaluation.figures.style import LIGHT, Theme, new_figure, png, styled, wrapped


@dataclass(frozen=True)
class Distribution:
    """The values of one set of images.

    Attributes:
      label: label in the legend.
      values: `[N]`.
      role: "real" (dotted line), "teacher" or "student".
    """

    label: str
    values: np.ndarray
    role: str = "student"


@dataclass(frozen=True)
class Distributions:
    """Distributions of one quantity.

    Attributes:
      title: name of the quantity, below the axis.
      lines: at least one; lines of equal place in all subplots look alike.
    """

    title: str
    lines: Sequence[Distribution]


def distributions_figure(subplots: Sequence[Distributions], theme: Theme = LIGHT) -> bytes:
    """Draws cumulative distributions side by side and returns the PNG.

    Raises:
      ValueError: there are no subplots.
    """
    if not subplots:
        raise ValueError("No distributions to draw.")
    labels = [wrapped(line.label) for line in subplots[0].lines]
    tallest = max(label.count("\n") + 1 for label in labels)
    rows = -(-len(labels) // 3) * tallest
    height = 3.3 + 0.26 * rows
    with styled(theme):
        figure = new_figure(9.2, height, theme)
        foot = 0.2 + 0.26 * rows
        handles: dict[str, Artist] = {}
        for i, subplot in enumerate(subplots):
            width = 0.92 / len(subplots)
            box = (0.07 + i * width, (foot + 0.5) / height, width - 0.06, 1 - (foot + 0.7) / height)
            axes = figure.add_axes(box)
            counts = {"teacher": 0, "student": 0, "real": 0}
            for line in subplot.lines:
                values = np.sort(np.asarray(line.values, np.float64))
                share = np.arange(1, len(values) + 1) / len(values) * 100
                palette = theme.teachers if line.role == "teacher" else theme.students
                colour = palette[counts[line.role] % len(palette)]
                counts[line.role] += 1
                real = line.role == "real"
                (handles[line.label],) = axes.step(
                    values, share, where="post", lw=2.2 if real else 1.7,
                    color=theme.ink if real else colour, ls=(0, (1, 1.2)) if real else "-",
                )  # fmt: skip
            axes.set_ylim(0, 101)
            axes.set_xlabel(drawable(subplot.title))
            axes.set_ylabel("images, %" if i == 0 else "")
            axes.grid(True, axis="y")
        figure.legend(
            list(handles.values()), [wrapped(label) for label in handles],
            loc="lower center", bbox_to_anchor=(0.5, 0.0), ncol=min(3, len(handles)),
        )  # fmt: skip
        return png(figure)
