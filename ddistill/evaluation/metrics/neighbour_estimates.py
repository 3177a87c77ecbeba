"""Precision, recall, density and coverage at a common number of samples, with intervals.

The definitions are those of `precision_recall`. Against fixed real images, precision and density
are means over samples and do not depend on the number of samples. Recall and coverage increase with
it, so they are averaged over subsets of a common size. The balls of a subset come from neighbour
lists of all samples; a list misses the k-th neighbour in a subset with a probability of about 1e-6.
"""

import math
from dataclasses import dataclass

import numpy as np

from ddistill.evaluation.metrics.precision_recall import (
    SLACK,
    checked_features,
    neighbour_radii,
    squared_distances,
)
from ddistill.evaluation.metrics.resampling import (
    USUAL,
    Estimate,
    Resampling,
    Subsets,
    draw_subsets,
    mean_interval,
    share_interval,
)

# Mean number of neighbours of a list that are in a subset. A Poisson variable of this mean is below
# 3 with a probability of 5e-7.
_EXPECTED = 20
# Number of distances in memory.
_ENTRIES = 1 << 22


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest other samples of every sample.

    Attributes:
      index: `[N, L]`, nearest first.
      squares: `[N, L]` squared distances.
    """

    index: np.ndarray
    squares: np.ndarray


@dataclass(frozen=True, eq=False)
class RealBalls:
    """Real features with a ball around each; made by `of`.

    Attributes:
      points: `[N, D]` float64, centred.
      centre: `[D]` mean, subtracted from the points.
      radii: `[N, 2]` squared distances to the k-th and `k_density`-th neighbour.
      k: neighbour of precision and recall.
      k_density: neighbour of density and coverage.
    """

    points: np.ndarray
    centre: np.ndarray
    radii: np.ndarray
    k: int
    k_density: int

    @classmethod
    def of(cls, real: np.ndarray, k: int = 3, k_density: int = 5) -> "RealBalls":
        """Computes the balls around real features `[N, D]`, N > max(k, k_density).

        Raises:
          ValueError: see `precision_recall.precision_recall`.
        """
        points = checked_features(real, "real")
        centre = points.mean(axis=0)
        points = points - centre
        return cls(
            points, centre, neighbour_radii(points, (k, k_density), name="real"), k, k_density
        )


def neighbour_estimates(
    balls: RealBalls,
    fake: np.ndarray,
    count: int | None = None,
    resampling: Resampling = USUAL,
    strata: np.ndarray | None = None,
) -> dict[str, Estimate]:
    """Computes precision, recall, density and coverage of fake features against real features.

    Args:
      balls: the real images.
      fake: `[M, D]` finite features of generated images, M > k.
      count: number of samples for recall and coverage, more than k; None for M.
      resampling: number of subsets and seed.
      strata: `[M]` classes with a fixed number of samples each; None for independent samples.

    Returns:
      Estimates of the scores of `precision_recall.precision_recall`, equal to them for `count` = M.

    Raises:
      ValueError: see `precision_recall`; also if `count` is not in k + 1 .. M.
    """
    fake = checked_features(fake, "fake")
    real, k = balls.points, balls.k
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"Real features have {real.shape[1]} entries, fake {fake.shape[1]}.")
    count = len(fake) if count is None else count
    if count <= k:
        raise ValueError(f"count={count} must be above k={k}, the number of neighbours.")
    subsets = draw_subsets(len(fake), count, k + 1, resampling, strata)
    fake = fake - balls.centre
    near = _nearest(fake, _list_length(subsets, k))
    inside, hits = np.zeros(len(fake), bool), np.zeros(len(fake))
    recalled = np.zeros((len(subsets.masks), len(real)), bool)
    covered = np.zeros_like(recalled)
    step = max(1, _ENTRIES // len(real))
    for start in range(0, len(fake), step):
        rows = slice(start, start + step)
        squares = squared_distances(fake[rows], real)
        inside[rows] = (squares <= balls.radii[:, 0] * SLACK).any(axis=1)
        wide = squares <= balls.radii[:, 1] * SLACK
        hits[rows] = wide.sum(axis=1)
        masks = subsets.masks[:, rows]
        _mark(covered, masks, *np.nonzero(wide))
        radii = _subset_radii(near, rows, subsets.masks, k) * SLACK
        sample, image = np.nonzero(squares <= near.squares[rows, -1:] * SLACK)
        _mark(recalled, masks, sample, image, squares[sample, image], radii)
    found = {
        "precision": share_interval(inside),
        "recall": subsets.estimate(recalled.mean(axis=1), 0.0, 1.0),
        "density": mean_interval(hits / balls.k_density),
        "coverage": subsets.estimate(covered.mean(axis=1), 0.0, 1.0),
    }
    if not resampling.subsets:
        return {name: Estimate(estimate.value) for name, estimate in found.items()}
    return found


def _list_length(subsets: Subsets, k: int) -> int:
    """Length of the neighbour list of a sample."""
    samples = subsets.masks.shape[1]
    smallest = int(subsets.masks.sum(axis=1).min())
    if smallest == samples:
        return k
    return min(samples - 1, math.ceil(max(_EXPECTED, 8 * k) * samples / smallest))


def _nearest(points: np.ndarray, length: int) -> Neighbours:
    if not 1 <= length < len(points):
        raise ValueError(
            f"{length} neighbours need more samples than that, and there are {len(points)}."
        )
    index = np.empty((len(points), length), np.int64)
    found = np.empty((len(points), length))
    step = max(1, _ENTRIES // len(points))
    for start in range(0, len(points), step):
        squares = squared_distances(points[start : start + step], points)
        rows = np.arange(len(squares))
        squares[rows, start + rows] = np.inf  # a point is not its own neighbour; a duplicate is
        part = np.argpartition(squares, length - 1, axis=1)[:, :length]
        values = np.take_along_axis(squares, part, axis=1)
        order = np.argsort(values, axis=1)
        index[start : start + step] = np.take_along_axis(part, order, axis=1)
        found[start : start + step] = np.take_along_axis(values, order, axis=1)
    return Neighbours(index, found)


def _subset_radii(near: Neighbours, rows: slice, masks: np.ndarray, k: int) -> np.ndarray:
    """Squared distances `[R, rows]` of samples to their k-th nearest neighbour in each subset."""
    index, squares = near.index[rows], near.squares[rows]
    radii = np.empty((len(masks), len(index)))
    at = np.arange(len(index))
    for radius, mask in zip(radii, masks):
        reached = np.cumsum(mask[index], axis=1, dtype=np.int32) >= k
        place = np.where(reached[:, -1], reached.argmax(axis=1), index.shape[1] - 1)
        radius[:] = squares[at, place]
    return radii


def _mark(
    marked: np.ndarray,
    masks: np.ndarray,
    sample: np.ndarray,
    image: np.ndarray,
    squares: np.ndarray | None = None,
    radii: np.ndarray | None = None,
) -> None:
    """Marks real images of pairs with a sample in the subset and, with radii, within its radius.

    Args:
      marked: `[R, N]` bool, written to.
      masks: `[R, rows]`.
      sample, image: `[pairs]` indices of the sample within the rows and of the real image.
      squares: `[pairs]` squared distances.
      radii: `[R, rows]` squared radii.
    """
    for r, mask in enumerate(masks):
        counts = mask[sample]
        if squares is not None and radii is not None:
            counts &= squares <= radii[r, sample]
        marked[r, image[counts]] = True
