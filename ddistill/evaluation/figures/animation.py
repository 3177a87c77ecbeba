"""An animation of denoising: one row per sampler, one frame per noise level."""

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ddistill.evaluation.figures.image_grids import (
    Strip,
    Trajectory,
    row_image,
    strip_columns,
    thumbnails,
)

# Largest size of the file in bytes.
LIMIT = 300_000
_FRAME, _REST = 140, 1800  # milliseconds of a frame, and of the first and the last one
_BACKGROUND = (190, 196, 207)  # of the gaps between images, on light and on dark pages


@dataclass(frozen=True)
class Animation:
    """An animated PNG.

    Attributes:
      title: heading.
      labels: one label per row of the picture, all rows of one height.
      png: the file.
      still: its last frame as PNG.
      width, height: size in pixels.
      caption: caption.
    """

    title: str
    labels: Sequence[str]
    png: bytes
    still: bytes
    width: int
    height: int
    caption: str = ""


def animate(strip: Strip, title: str, caption: str = "", limit: int = LIMIT) -> Animation | None:
    """Animates the trajectories of a strip from noise to image.

    Images, frames and samples are reduced until the file is below `limit` bytes.

    Args:
      strip: trajectories from the same noise.
      title: heading.
      caption: caption.
      limit: largest size of the file.

    Returns:
      The animation; None if its smallest form is larger than `limit`.

    Raises:
      ValueError: see `strip_columns`.
    """
    samples = np.asarray(strip.trajectories[0].frames).shape[1]
    for count, most, side in (
        (samples, 17, 64),
        (samples, 9, 64),
        (4, 9, 48),
        (2, 9, 32),
        (1, 5, 32),
    ):
        columns = strip_columns(dataclasses.replace(strip, max_columns=most))
        frames = [
            _frame(strip.trajectories, column, min(count, samples), side) for column in columns
        ]
        png = _encode(frames)
        if len(png) <= limit:
            labels = [t.label for t in strip.trajectories]
            still = _encode(frames[-1:])
            return Animation(title, labels, png, still, *frames[0].size, caption)
    return None


def _frame(trajectories: Sequence[Trajectory], column: float, count: int, side: int) -> Image.Image:
    """The state of every sampler when it has reached the noise level `column`, one row each."""
    rows = []
    for trajectory in trajectories:
        levels = np.asarray(trajectory.levels, np.float64)
        # The latest state at this level or a noisier one; a sampler may skip the level.
        reached = int(np.flatnonzero(levels >= column)[-1]) if (levels >= column).any() else 0
        images = np.clip(np.asarray(trajectory.frames)[reached, :count], -1, 1)
        rows.append(row_image(thumbnails(images, side)))
    canvas = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), _BACKGROUND)
    top = 0
    for row in rows:
        canvas.paste(row, (0, top), row)
        top += row.height
    channels = np.asarray(trajectories[0].frames).shape[-1]
    return canvas.convert("L") if channels == 1 else canvas


def _encode(frames: Sequence[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    if len(frames) == 1:
        frames[0].save(buffer, "PNG")
        return buffer.getvalue()
    times = [_FRAME] * len(frames)
    times[0], times[-1] = _REST // 2, _REST
    frames[0].save(
        buffer, "PNG", save_all=True, append_images=frames[1:], duration=times, loop=0
    )  # fmt: skip
    return buffer.getvalue()
