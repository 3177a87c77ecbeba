"""Pictures of images: labelled grids and denoising strips.

Images are [N, H, W, C] with C = 1 or 3, uint8 or float in [-1, 1]. Pictures quantise them to uint8
and enlarge them by a whole factor without interpolation.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddistill.evaluation.metrics.pixels import quantise
from ddistill.runtime.files import replacing
from ddistill.text import printable, shortened

GAP = 4  # pixels between images


CELL = 48  # height in pixels to which smaller images are enlarged
_TEXT_CELL = 96  # the same in columns with texts


# Half transparent: light grey on a white page, dark grey on a dark page.
_GAP_COLOR = (160, 170, 190, 96)


_INK, _MUTED, _PAPER = (31, 36, 48), (110, 118, 135), (255, 255, 255)


@dataclass(frozen=True)
class ImageRow:
    """The images of one sampler; image i of every row of a grid starts from the same noise.

    Attributes:
      label: for example "teacher DDIM, 256 steps".
      images: [N, H, W, C], uint8 or float in [-1, 1].
      note: a short second line, for example "FD 1.4".
    """

    label: str
    images: np.ndarray
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """Rows of images from the same noise.

    Attributes:
      title: heading of the block.
      rows: at least one row; all rows have the same number and shape of images.
      caption: caption.
      texts: one text under each column, such as its prompt; images are then larger.
    """

    title: str
    rows: Sequence[ImageRow]
    caption: str = ""
    texts: Sequence[str] = ()

    @property
    def factor(self) -> int:
        """By which images are enlarged."""
        size = np.asarray(self.rows[0].images).shape[1]
        return enlarge_factor(size, _TEXT_CELL if self.texts else CELL)


@dataclass(frozen=True)
class Trajectory:
    """The states of one sampler from noise to image.

    Attributes:
      label: for example "student, 4 steps".
      frames: [S, N, H, W, C], noise first; values are clipped to [-1, 1] for display.
      levels: [S] noise level of each frame (index in the schedule of the teacher).
    """

    label: str
    frames: np.ndarray
    levels: Sequence[float]


@dataclass(frozen=True)
class Strip:
    """Denoising of a few samples by several samplers, aligned at equal noise levels.

    Attributes:
      title: heading.
      trajectories: trajectories from the same noise, with the same number of samples.
      columns: noise levels to show, noisiest first; empty for the levels of the shortest trajectory
        with at least 8 frames, else of the longest, thinned to `max_columns`.
      max_columns: maximal number of frames in a row.
      caption: caption.
    """

    title: str
    trajectories: Sequence[Trajectory]
    columns: Sequence[float] = field(default=())
    max_columns: int = 9
    caption: str = ""


def enlarge_factor(size: int, least: int = CELL) -> int:
    """Smallest whole factor that enlarges `size` pixels to at least `least`: 8 -> 6, 32 -> 2."""
    return max(1, math.ceil(least / size))


def thumbnails(images: np.ndarray, side: int) -> np.ndarray:
    """Images [N, H, W, C] with at most `side` pixels per side, by means over blocks of pixels.

    Smaller images do not change. Sides that no whole factor divides lose their last pixels.
    """
    images = np.asarray(images)
    factor = -(-max(images.shape[1:3]) // side)
    if factor <= 1:
        return images
    count, height, width, channels = images.shape
    rows, columns = max(height // factor, 1), max(width // factor, 1)
    cut = images[:, : rows * factor, : columns * factor].astype(np.float32)
    blocks = cut.reshape(
        count, rows, cut.shape[1] // rows, columns, cut.shape[2] // columns, channels
    )
    means = blocks.mean(axis=(2, 4))
    return means.round().astype(np.uint8) if images.dtype == np.uint8 else means


def write_png(path: Path, image: Image.Image) -> None:
    """Writes an image as PNG; see `ddistill.runtime.files.replacing`."""
    with replacing(path) as file:
        image.save(file, "PNG")


def row_image(images: np.ndarray, factor: int | None = None) -> Image.Image:
    """Draws images [N, H, W, C] side by side, each in a frame of GAP / 2 pixels (RGBA).

    Adjacent rows then have equal gaps in both directions.
    """
    pixels = _rgb(images)
    factor = factor or enlarge_factor(pixels.shape[1])
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    n, height, width, _ = pixels.shape
    canvas = np.empty((height + GAP, n, width + GAP, 4), np.uint8)
    canvas[:] = _GAP_COLOR
    inside = slice(GAP // 2, GAP // 2 + height), slice(None), slice(GAP // 2, GAP // 2 + width)
    canvas[(*inside, slice(0, 3))] = pixels.transpose(1, 0, 2, 3)
    canvas[(*inside, 3)] = 255
    return Image.fromarray(canvas.reshape(height + GAP, n * (width + GAP), 4))


def grid_image(grids: Sequence[Grid]) -> Image.Image:
    """Draws labelled grids below one another on white (RGB)."""
    rows = [(grid, row) for grid in grids for row in check_grid(grid).rows]
    if not rows:
        raise ValueError("Nothing to draw: no grid has a row.")
    blocks = []
    for grid in grids:
        lines: list[tuple[str, str, Image.Image]] = [
            (row.label, row.note, row_image(row.images, grid.factor)) for row in grid.rows
        ]
        if grid.texts:
            lines.append(("", "", _texts_image(grid.texts, lines[0][2].width)))
        blocks.append((grid.title, grid.caption, lines))
    return _compose(blocks)


def strip_image(strip: Strip) -> Image.Image:
    """Draws a strip with labels on white (RGB)."""
    columns = strip_columns(strip)
    header = [f"{c:g}" for c in columns]
    blocks = []
    for sample in range(np.asarray(strip.trajectories[0].frames).shape[1]):
        lines = [(t.label, "", strip_row(t, sample, columns)) for t in strip.trajectories]
        title = strip.title if sample == 0 else ""
        blocks.append((title, strip.caption if sample == 0 else "", lines))
    return _compose(blocks, header, "noise level")


def strip_columns(strip: Strip) -> list[float]:
    """Noise levels of the strip's columns, noisiest first.

    Raises:
      ValueError: there are no trajectories, or frames do not fit levels or other trajectories.
    """
    if not strip.trajectories:
        raise ValueError("A strip needs at least one trajectory.")
    samples = {np.asarray(t.frames).shape[1:2] for t in strip.trajectories}
    for t in strip.trajectories:
        if np.asarray(t.frames).ndim != 5 or len(t.levels) != len(t.frames):
            raise ValueError(
                f"Trajectory '{t.label}' needs frames [S, N, H, W, C] and S levels; got"
                f" {np.asarray(t.frames).shape} and {len(t.levels)} levels."
            )
    if len(samples) > 1:
        raise ValueError(f"Trajectories show different numbers of samples: {sorted(samples)}.")
    columns = [float(c) for c in strip.columns]
    if not columns:
        by_length = sorted(strip.trajectories, key=lambda t: len(t.levels))
        source = next((t for t in by_length if len(t.levels) >= 8), by_length[-1])
        columns = sorted((float(v) for v in source.levels), reverse=True)
    if len(columns) > strip.max_columns:
        keep = np.linspace(0, len(columns) - 1, strip.max_columns).round().astype(int)
        columns = [columns[i] for i in keep]
    return columns


def strip_row(trajectory: Trajectory, sample: int, columns: Sequence[float]) -> Image.Image:
    """Draws the frames of one sample at the noise levels `columns` (RGBA).

    A thin line fills the levels that the sampler skips.
    """
    frames = np.asarray(trajectory.frames)[:, sample]
    levels = np.asarray(trajectory.levels, np.float64)
    spacing = np.abs(np.diff(columns)).min() if len(columns) > 1 else np.inf
    factor = enlarge_factor(frames.shape[1])
    height, width = frames.shape[1] * factor + GAP, frames.shape[2] * factor + GAP
    canvas = Image.new("RGBA", (len(columns) * width, height), (0, 0, 0, 0))
    line = ImageDraw.Draw(canvas)
    for i, column in enumerate(columns):
        nearest = int(np.abs(levels - column).argmin())
        if abs(levels[nearest] - column) < 0.5 * spacing:
            canvas.paste(row_image(frames[nearest : nearest + 1], factor), (i * width, 0))
        else:
            ends = (i * width, height // 2), ((i + 1) * width, height // 2)
            line.line(ends, (150, 158, 175, 255), 2)
    return canvas


def check_grid(grid: Grid) -> Grid:
    """Checks that the rows of `grid` have equal shapes and returns `grid`.

    Raises:
      ValueError: there are no rows, or a row has another shape; the message names it.
    """
    if not grid.rows:
        raise ValueError(f"Grid '{grid.title}' has no rows.")
    first = np.asarray(grid.rows[0].images).shape
    for row in grid.rows:
        shape = np.asarray(row.images).shape
        if grid.texts and len(grid.texts) != shape[0]:
            raise ValueError(
                f"Grid '{grid.title}' has {len(grid.texts)} texts for {shape[0]} columns."
            )
        if shape != first or len(shape) != 4 or shape[-1] not in (1, 3) or not shape[0]:
            raise ValueError(
                f"Row '{row.label}' of grid '{grid.title}' has images {shape}; all rows need the"
                f" shape of the first, [N, H, W, 1 or 3]: {first}."
            )
    return grid


def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib, so that pictures do not depend on the machine."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def drawable(text: str, most: int = 80) -> str:
    """Shortens text to `most` characters and escapes characters that the font cannot draw."""
    known = _characters()
    return shortened(
        "".join(c if ord(c) in known else ascii(c)[1:-1] for c in printable(text)), most
    )


@functools.cache
def _characters() -> frozenset[int]:
    """Code points that both the regular and the bold font contain."""
    from matplotlib.font_manager import get_font

    fonts = (set(get_font(load_font(10, bold).path).get_charmap()) for bold in (False, True))
    return frozenset.intersection(*map(frozenset, fonts))


def _rgb(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(f"Expected images [N, H, W, 1 or 3]; got {images.shape}.")
    return np.broadcast_to(quantise(images), (*images.shape[:3], 3))


def _texts_image(texts: Sequence[str], width: int) -> Image.Image:
    """Texts side by side (RGBA), each in lines of words under its column."""
    font, cell = load_font(11), width // len(texts)
    columns = [_lines(drawable(text), font, cell - 6) for text in texts]
    height = 14 * max(map(len, columns)) + 6
    canvas = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, lines in enumerate(columns):
        for j, line in enumerate(lines):
            draw.text(((i + 0.5) * cell, 2 + 14 * j), line, _MUTED, font, anchor="ma")
    return canvas


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def _compose(
    blocks: Sequence[tuple[str, str, Sequence[tuple[str, str, Image.Image]]]],
    header: Sequence[str] = (),
    header_label: str = "",
) -> Image.Image:
    """Draws blocks of (label, note, row image) with titles; rows are aligned left."""
    label_font, note_font, title_font = load_font(15), load_font(12), load_font(18, bold=True)
    blocks = [
        (
            drawable(title),
            drawable(caption, 240),
            [(drawable(a), drawable(b), row) for a, b, row in block],
        )
        for title, caption, block in blocks
    ]
    lines = [line for _, _, block in blocks for line in block]
    left = 30 + math.ceil(
        max(max(label_font.getlength(a), note_font.getlength(b)) for a, b, _ in lines)
    )
    width = left + max(row.width for _, _, row in lines) + 16
    for title, caption, _ in blocks:
        width = max(
            width, 32 + math.ceil(title_font.getlength(title)), _text_width(caption, note_font)
        )
    heights = [
        (34 if title else 6) + (20 if caption else 0) + sum(r.height for _, _, r in block) + 8
        for title, caption, block in blocks
    ]
    canvas = Image.new("RGB", (width, 12 + sum(heights) + (22 if header else 0) + 6), _PAPER)
    draw = ImageDraw.Draw(canvas)
    y = 12
    for index, (title, caption, block) in enumerate(blocks):
        if title:
            draw.text((16, y), title, _INK, title_font)
            y += 28
        if caption:
            draw.text((16, y), caption, _MUTED, note_font)
            y += 20
        y += 6
        if header and index == 0:
            step = block[0][2].width / len(header)
            draw.text((left - 14, y), header_label, _MUTED, note_font, anchor="ra")
            for i, text in enumerate(header):
                centre = left + (i + 0.5) * step
                draw.text((centre, y), text, _MUTED, note_font, anchor="ma")
            y += 22
        for label, note, row in block:
            middle = y + row.height / 2
            draw.text(
                (left - 14, middle - (8 if note else 0)), label, _INK, label_font, anchor="rm"
            )
            if note:
                draw.text((left - 14, middle + 10), note, _MUTED, note_font, anchor="rm")
            canvas.paste(row, (left, y), row)
            y += row.height
        y += 8
    return canvas


def _text_width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return 32 + math.ceil(font.getlength(text)) if text else 0
