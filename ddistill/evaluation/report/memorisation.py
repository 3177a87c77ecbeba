"""Nearest training images of samples, and the distances to them beside those of test images."""

from collections.abc import Callable, Sequence

import numpy as np

from ddistill.data import Dataset
from ddistill.evaluation.figures.distributions import (
    Distribution,
    Distributions,
    distributions_figure,
)
from ddistill.evaluation.figures.image_grids import Grid, ImageRow, thumbnails
from ddistill.evaluation.figures.style import DARK, LIGHT
from ddistill.evaluation.figures.tables import NOTHING, Table, stat_text
from ddistill.evaluation.metrics.copying import nearest, share_closer
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.records.aggregate import Stat
from ddistill.evaluation.report.report import Part, Picture
from ddistill.evaluation.report.teacher_parts import SIDE, role_of
from ddistill.evaluation.scored import ScoredRun
from ddistill.evaluation.scorer import SEARCHED, Nearest, Scorer

# Images in a row; students that are shown; training images and pixels per side of the search in
# pixels, which reads the images again.
IMAGES, STUDENTS, MOST_IMAGES, PIXEL_SIDE = 10, 3, 10_000, 32
# Samples of a class by the classifier, below which the class has no row.
FEWEST = 4


def nearest_parts(
    dataset: Dataset, scorer: Scorer | None, scored: Sequence[ScoredRun]
) -> list[Part]:
    """A picture of samples above their nearest training images, distances, and their comparison.

    Args:
      dataset: the training images.
      scorer: the feature network and the test images; None to search in pixels only.
      scored: all scored runs, the reference teacher first.
    """
    students = [s for s in scored if s.run.role == "student"]
    chosen = [scored[0], *spread(students, STUDENTS)]
    searched = (
        np.arange(min(len(dataset), MOST_IMAGES)) * len(dataset) // min(len(dataset), MOST_IMAGES)
    )
    search = _pixel_search(dataset, searched)
    in_pixels = [search(s.samples.images[:SEARCHED]) for s in chosen]
    among = f"{len(searched)} of {len(dataset)} training images in pixels"
    if scorer is not None:
        among += f", and {scorer.real_count} of them in features"
    if len(searched) == len(dataset) == (scorer.real_count if scorer else len(dataset)):
        among = f"all {len(dataset)} training images"
    parts = [_pictures(dataset, chosen, in_pixels, among)]
    if scorer is not None:
        unseen = search(np.asarray(scorer.test.take(scorer.unseen_index)))
        parts += _distances(scorer, chosen, in_pixels, unseen)
    return parts


def spread(runs: Sequence[ScoredRun], most: int) -> list[ScoredRun]:
    """At most `most` runs: all of them, or some with equal distances in the list."""
    if len(runs) <= most:
        return list(runs)
    return [runs[i] for i in np.linspace(0, len(runs) - 1, most).round().astype(int)]


def _pixel_search(dataset: Dataset, searched: np.ndarray) -> Callable[[np.ndarray], Nearest]:
    """A function images [N, H, W, C] -> their nearest images among `searched` training images."""
    training = np.concatenate(
        [
            _vectors(np.asarray(dataset.take(searched[start : start + 1024])))
            for start in range(0, len(searched), 1024)
        ]
    )

    def search(images: np.ndarray) -> Nearest:
        distances, index = nearest(_vectors(images), len(training), lambda rows: training[rows])
        return Nearest(distances / np.sqrt(training.shape[1]), searched[index])

    return search


def _vectors(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as vectors, of images with at most `PIXEL_SIDE` pixels per side."""
    small = thumbnails(quantise(images), PIXEL_SIDE)
    return small.reshape(len(small), -1).astype(np.float32) / np.float32(255)


def _pictures(
    dataset: Dataset, chosen: Sequence[ScoredRun], in_pixels: Sequence[Nearest], among: str
) -> Part:
    count = min(IMAGES, len(chosen[0].samples.images))

    def row(label: str, images: np.ndarray) -> ImageRow:
        return ImageRow(label, thumbnails(quantise(images), SIDE))

    rows = []
    for s, pixels in zip(chosen, in_pixels):
        rows.append(row(s.run.label, s.samples.images[:count]))
        if s.nearest is not None:
            found = dataset.take(s.nearest.index[:count])
            rows.append(row("nearest in features", np.asarray(found)))
        found = dataset.take(pixels.index[:count])
        rows.append(row("nearest in pixels", np.asarray(found)))
    return Part(
        "Nearest training images",
        [
            Grid(
                "Nearest training images",
                rows,
                f"The first samples, and below each its nearest training image, searched among "
                f"{among}. Mirrored copies are not searched.",
            )
        ],
        "nearest.png",
    )


def _distances(
    scorer: Scorer,
    chosen: Sequence[ScoredRun],
    in_pixels: Sequence[Nearest],
    unseen: Nearest,
) -> list[Part]:
    def lines(own: Sequence[np.ndarray], real: np.ndarray) -> list[Distribution]:
        return [
            Distribution(f"test images ({len(real)})", real, "real"),
            *(Distribution(s.run.label, d, role_of(s.run)) for s, d in zip(chosen, own)),
        ]

    features = [s.nearest.distances for s in chosen if s.nearest is not None]
    pixels = [found.distances for found in in_pixels]
    subplots = [
        Distributions(
            f"distance in features ({scorer.name})", lines(features, scorer.unseen.distances)
        ),
        Distributions("root mean square distance in pixels", lines(pixels, unseen.distances)),
    ]
    figure = Picture(
        "Distance to the nearest training image",
        distributions_figure(subplots, LIGHT),
        distributions_figure(subplots, DARK),
        "Cumulative distributions of the distance to the nearest training image, of test images, "
        + ", ".join(s.run.label for s in chosen),
        f"Share of the images that are at most that far from their nearest training image, for "
        f"{len(pixels[0])} samples each. A curve left of that of the test images is closer to the "
        "training images than unseen images are; copies would start at distance 0.",
    )
    copying = [_in_text(share_closer(d, scorer.unseen.distances)) for d in features]
    in_pixel_text = [_in_text(share_closer(d, unseen.distances)) for d in pixels]
    table = Table(
        ["sampler", "NFE", "copying, features", "copying, pixels"],
        [
            [s.run.label, str(s.run.nfe), a, b]
            for s, a, b in zip(chosen, copying or [NOTHING] * len(chosen), in_pixel_text)
        ],
        title="Copying",
        caption="Share of pairs (sample, test image) in which the sample is closer to its nearest "
        "training image than the test image is to its own. 0.5: as far away as unseen images. Near "
        "1: copies of training images; in pixels, blurred images also give values above 0.5. "
        "Below 0.5: samples are farther from the data than real images are. In brackets 95 % "
        "bootstrap intervals over samples and test images.",
        roles=[role_of(s.run) for s in chosen],
    )
    return [Part(figure.title, figure, "nearest_distances.png"), Part(table.title, table)]


def _in_text(score: Estimate) -> str:
    return stat_text("copying", Stat(score.value, None, 1, score.low, score.high))


def class_grids(
    dataset: Dataset, scorer: Scorer | None, scored: Sequence[ScoredRun], labels: np.ndarray | None
) -> list[Grid]:
    """A grid for the teacher and for some students, with one row per class.

    Args:
      dataset: gives the names of the classes.
      scorer: the classifier; None for grids without its share of correct classes.
      scored: all scored runs, the reference teacher first.
      labels: `[N]` class of every sample; None for networks without classes, whose samples are
        sorted by the classifier.
    """
    told = labels is not None and scorer is not None and scorer.tells_classes
    caption = "One class per row; the same place in all grids has the same noise."
    if labels is None:
        caption = "One class per row, by the classifier: the networks are not given classes."
    elif told:
        caption += " The share is that of the classifier."
    students = [s for s in scored if s.run.role == "student"]
    grids = []
    for s in [scored[0], *spread(students, STUDENTS)]:
        of = s.classes if labels is None else labels
        known, sizes = np.unique(of, return_counts=True)
        if labels is None and (sizes >= FEWEST).any():  # rows have equally many images
            known = known[sizes >= FEWEST]
        classes = known[np.linspace(0, len(known) - 1, min(10, len(known))).round().astype(int)]
        count = min(8, min(int((of == c).sum()) for c in classes))
        rows = []
        for c in classes:
            own = np.flatnonzero(of == c)
            share = f"{np.mean(s.classes[own] == c):.0%} recognised" if told else ""
            images = thumbnails(quantise(s.samples.images[own[:count]]), SIDE)
            name = dataset.class_names[c] if c < len(dataset.class_names) else ""
            rows.append(ImageRow(name or f"class {c}", images, share))
        grids.append(Grid(f"Classes: {s.run.label}", rows, caption))
    return grids
