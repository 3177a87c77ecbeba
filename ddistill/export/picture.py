"""The picture of a model card: samples of teacher and student from the same noise."""

from pathlib import Path

import numpy as np
from PIL import Image

from ddistill.evaluation.figures.image_grids import Grid, ImageRow, grid_image, write_png
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.records.sampler_runs import REFERENCE_TEACHER
from ddistill.evaluation.sampling import kept_samples
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.trained_run import TrainedRun

COLUMNS = 10
# Pixels to which larger images are reduced, so that the picture stays small.
_SIDE = 64


def image_rows(run: TrainedRun, exported: SamplerRun) -> tuple[ImageRow, ...]:
    """The first samples of the reference teacher and of the exported network, if there are any.

    They are those of the run's evaluation: nothing is sampled here. Empty where the evaluation has
    no samples of the exported network, or has made them with other settings.
    """
    teachers = [r for r in run.sampler_runs if r.role == REFERENCE_TEACHER]
    rows = []
    for sampler_run in (*(r for r in teachers if r.key != exported.key), exported):
        samples = kept_samples(sampler_run, run.folder, run.settings.evaluation)
        if samples is not None:
            rows.append(ImageRow(sampler_run.label, _small(samples.images[:COLUMNS])))
        elif sampler_run is exported:
            return ()
    return tuple(rows)


def write_picture(path: Path, rows: tuple[ImageRow, ...]) -> None:
    """Writes rows of images as a PNG.

    Raises:
      OSError: the file cannot be written.
    """
    write_png(path, grid_image([Grid("", rows)]))


def _small(images: np.ndarray) -> np.ndarray:
    """uint8 images of at most `_SIDE` pixels."""
    pixels = quantise(images)
    height, width = pixels.shape[1:3]
    scale = _SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = pixels.shape[-1] == 1
    made = [
        np.asarray(Image.fromarray(x[..., 0] if grey else x).resize(size, Image.Resampling.LANCZOS))
        for x in pixels
    ]
    return np.stack(made)[..., None] if grey else np.stack(made)
