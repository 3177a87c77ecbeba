"""Nearest training images, and whether samples are closer to them than unseen images are."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from ddistill.evaluation.metrics.precision_recall import squared_distances
from ddistill.evaluation.metrics.resampling import Estimate

# Points of the training set in one block of distances.
_BLOCK = 4096
# Bootstrap draws, and their seed.
_DRAWS, _SEED = 1000, 2020


def nearest(
    points: Float[np.ndarray, "N D"],
    count: int,
    take: Callable[[Int[np.ndarray, " B"]], Float[np.ndarray, "B D"]],
) -> tuple[Float[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Finds the nearest of `count` training points of every point.

    Args:
      points: the points.
      count: number of training points.
      take: indices -> training points, called for one block after another.

    Returns:
      (`[N]` distances, `[N]` indices of the training points).
    """
    points = np.asarray(points, np.float64)
    centre = points.mean(axis=0)  # distances are computed near 0, where rounding is smallest
    best, index = np.full(len(points), np.inf), np.zeros(len(points), np.int64)
    for start in range(0, count, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        squares = squared_distances(points - centre, np.asarray(take(rows), np.float64) - centre)
        found = squares.argmin(axis=1)
        squares = np.maximum(squares[np.arange(len(points)), found], 0.0)
        closer = squares < best
        best[closer], index[closer] = squares[closer], rows[found[closer]]
    return np.sqrt(best), index


def share_closer(samples: Float[np.ndarray, " N"], unseen: Float[np.ndarray, " M"]) -> Estimate:
    """Share of pairs (sample, unseen image) in which the sample is closer to the training images.

    Ties count one half. 0.5 means that samples are as far from the training images as images that
    were not trained on; a generator that copies training images has a share near 1. This is the
    statistic of Meehan et al. (arXiv 2004.05675) without their cells.

    Args:
      samples: distance of each sample to its nearest training image.
      unseen: distances of images that were not trained on, to the same training images.

    Returns:
      The share, with a bootstrap interval over samples and unseen images.
    """
    samples, unseen = np.asarray(samples)[:, None], np.asarray(unseen)[None]
    closer = (samples < unseen) + 0.5 * (samples == unseen)
    rng = np.random.default_rng(_SEED)
    weights = [rng.multinomial(n, np.full(n, 1 / n), _DRAWS) / n for n in closer.shape]
    found = np.einsum("dm,dm->d", weights[0] @ closer, weights[1])
    value = float(closer.mean())
    low, high = (float(x) for x in np.quantile(found, (0.025, 0.975)))
    return Estimate(value, min(low, value), max(high, value))
