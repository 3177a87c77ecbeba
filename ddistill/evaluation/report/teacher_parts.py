"""Parts of the report that compare students with the teacher from the same noise."""

from collections.abc import Sequence

import numpy as np

from ddistill.evaluation.figures.image_grids import Grid, ImageRow, thumbnails
from ddistill.evaluation.figures.tables import NOTHING, Table, number, stat_text
from ddistill.evaluation.metrics.paths import LARGEST, LENGTH
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.metrics.teacher_distance import PSNR, RAW, RELATIVE
from ddistill.evaluation.records.aggregate import Stat
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.report.report import Part
from ddistill.evaluation.sampling_plan import SamplerRun
from ddistill.evaluation.scored import ScoredRun, comparable
from ddistill.evaluation.scorer import Scorer

# Images in a row, paths that are shown, and pixels per side of an image.
IMAGES, PATHS, SIDE = 12, 2, 96
_FACTORS = (1, 2, 4, 8, 16)


def role_of(run: SamplerRun) -> str:
    """Role of a run in tables and figures: "student" or "teacher"."""
    return "student" if run.role == "student" else "teacher"


def consistency_parts(scorer: Scorer | None, scored: Sequence[ScoredRun]) -> list[Part]:
    """A table of the distances to the teacher's images, and a picture of the differences.

    Args:
      scorer: the feature network; None to compare pixels only.
      scored: all scored runs, the reference teacher first.
    """
    others = comparable(scored)[1:]
    if not others:
        return []
    names = [PSNR] + ([RAW, RELATIVE] if scorer else [])
    names += [name for name in others[0].scores if name.startswith("lpips_")]
    features = (
        f" Features are {_features(scorer)}; the distance is not LPIPS, and distances in other "
        "features are on another scale. The relative distance is divided by the mean distance "
        "between two images of the teacher from different noise."
        if scorer
        else ""
    )
    table = Table(
        ["sampler", "NFE", *(METRICS[n].label for n in names)],
        [[s.run.label, str(s.run.nfe), *_cells(s, names)] for s in others],
        title="Consistency with the teacher",
        caption=f"Each image is compared with the image of {scored[0].run.label} from the same "
        f"noise, over {len(scored[0].samples.images)} images; in brackets 95 % bootstrap "
        f"intervals.{features}",
        roles=[role_of(s.run) for s in others],
    )
    return [Part(table.title, table), Part("Difference", [_difference(scored)], "difference.png")]


def _features(scorer: Scorer) -> str:
    """Whose the features are, for captions."""
    return f"those of {scorer.name}" + ("" if scorer.fixed else ", the run's own classifier")


def _cells(scored: ScoredRun, names: Sequence[str]) -> list[str]:
    return [_text(scored, name) for name in names]


def _text(scored: ScoredRun, name: str) -> str:
    if name not in scored.scores:
        return NOTHING
    score = scored.scores[name]
    return stat_text(name, Stat(score.value, None, 1, score.low, score.high))


def _difference(scored: Sequence[ScoredRun]) -> Grid:
    """Images of the teacher, and the amplified difference of every compared run."""
    reference, *others = comparable(scored)
    teacher = _first(reference)
    gaps = [_first(s) - teacher for s in others]
    students = [gap for s, gap in zip(others, gaps) if s.run.role == "student"]
    factor = amplification(students or gaps)
    rows = [ImageRow(reference.run.label, teacher)]
    times = f"amplified {factor} times" if factor > 1 else "not amplified"
    end = f"1/{factor}" if factor > 1 else "the whole"
    more = " or more" if factor > 1 else ""
    for s, gap in zip(others, gaps):
        note = f"PSNR {number(PSNR, s.scores[PSNR].value)} dB" if PSNR in s.scores else ""
        rows.append(ImageRow(f"{s.run.label}, minus teacher", _grey(gap, factor), note))
    return Grid(
        "Student minus teacher",
        rows,
        f"Difference to the teacher's image from the same noise, {times}: grey is none, white or "
        f"black is {end} of the range of pixels{more}.",
    )


def _first(scored: ScoredRun) -> np.ndarray:
    """The first images, clipped to [-1, 1]."""
    return thumbnails(np.clip(scored.samples.images[:IMAGES], -1, 1), SIDE)


def amplification(gaps: Sequence[np.ndarray]) -> int:
    """The largest of 1, 2, 4, 8, 16 by which 99 % of the pixels of all differences can be
    multiplied and remain in range.

    Args:
      gaps: differences of images in [-1, 1], so in [-2, 2].
    """
    size = float(np.quantile(np.abs(np.concatenate([gap.ravel() for gap in gaps])), 0.99)) / 2
    return max([f for f in _FACTORS if f * size <= 1], default=1)


def _grey(gap: np.ndarray, factor: int) -> np.ndarray:
    """Differences as images in [-1, 1]: 0 is grey, and the range of pixels is 2."""
    return np.clip(gap * factor, -2, 2) / 2


def interpolation_parts(scorer: Scorer | None, scored: Sequence[ScoredRun]) -> list[Part]:
    """Images along paths between two noises, and a table of the smoothness of the paths.

    Args:
      scorer: the feature network; None for images alone.
      scored: all scored runs, the reference teacher first.
    """
    found = [s for s in comparable(scored) if s.paths is not None]
    if not found:
        return []
    paths = found[0].paths
    assert paths is not None
    grids = [_path(found, i) for i in range(min(PATHS, len(paths)))]
    parts = [Part("Interpolation", grids, "interpolation.png")]
    if scorer is not None and any(LENGTH in s.scores for s in found):
        parts.append(Part("Smoothness", _smoothness(scorer, found, *paths.shape[:2])))
    return parts


def _path(found: Sequence[ScoredRun], index: int) -> Grid:
    rows = []
    for s in found:
        assert s.paths is not None
        images = thumbnails(np.clip(s.paths[index], -1, 1), SIDE)
        note = (
            f"largest step {number(LARGEST, s.scores[LARGEST].value)} over all paths"
            if LARGEST in s.scores and not index
            else ""
        )
        rows.append(ImageRow(s.run.label, quantise(images), note))
    return Grid(
        f"Interpolation between two noises, path {index + 1}",
        rows,
        "Every column is one point of the great circle between two noises (spherical "
        "interpolation); all rows start from the same points. Samplers that draw noise in their "
        "steps have no paths."
        if not index
        else "",
    )


def _smoothness(scorer: Scorer, found: Sequence[ScoredRun], paths: int, frames: int) -> Table:
    return Table(
        ["sampler", "NFE", METRICS[LENGTH].label, METRICS[LARGEST].label],
        [[s.run.label, str(s.run.nfe), *_cells(s, (LENGTH, LARGEST))] for s in found],
        title="Smoothness of interpolation",
        caption=f"{paths} path{'s' if paths != 1 else ''} of {frames} images. Features are "
        f"{_features(scorer)}. Path length is the sum of the distances between "
        "consecutive images, largest step the largest of them; both are divided by the distance "
        f"between first and last image. A straight path has length 1, and its {frames - 1} equal "
        f"steps are {1 / (frames - 1):.3f} each. Compare a student with the teacher at its full "
        "number of steps: blurred images change little and give smooth paths too. In brackets 95 % "
        "bootstrap intervals over paths.",
        roles=[role_of(s.run) for s in found],
    )
