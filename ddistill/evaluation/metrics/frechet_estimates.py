"""The Frechet distance of N samples and of infinitely many samples, with intervals.

The distance of N samples is too large by about c / N, where c depends on the features and on the
generator, so distances at different numbers of samples are not comparable. FD-infinity
(arXiv 1911.07023) extrapolates linearly in 1 / N. Two points are enough: all samples, and half of
them averaged over random splits, which adds little to the variance of the distance itself.

The interval comes from the infinitesimal jackknife: the distance is a smooth function of mean and
covariance, so every sample has an influence on it, and the standard error is that of the mean of
the influences. This is the limit of a bootstrap without the bias from duplicates, and it needs one
eigendecomposition.
"""

import math
from dataclasses import dataclass

import numpy as np

from ddistill.evaluation.metrics.frechet import Moments, checked_gaussian, symmetric_root
from ddistill.evaluation.metrics.resampling import (
    USUAL,
    Estimate,
    Resampling,
    interval,
    spread_order,
)

_BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Target:
    """The Gaussian of the real images, with the square root of its covariance.

    Attributes:
      mean: `[D]` float64.
      cov: `[D, D]` float64.
      root: `[D, D]`, symmetric.
    """

    mean: np.ndarray
    cov: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, mean: np.ndarray, cov: np.ndarray) -> "Target":
        """Computes the square root of a covariance.

        Raises:
          ValueError: see `frechet_distance`.
        """
        mean, cov = checked_gaussian(mean, cov, "first")
        return cls(mean, cov, symmetric_root(cov, "first"))

    def distance(self, mean: np.ndarray, cov: np.ndarray) -> float:
        """`frechet_distance` to the Gaussian of samples; `cov` is not checked."""
        values = np.linalg.eigvalsh(self._inner(cov))
        return self._distance(mean, cov, values)

    def _inner(self, cov: np.ndarray) -> np.ndarray:
        inner = self.root @ cov @ self.root
        return (inner + inner.T) / 2

    def _distance(self, mean: np.ndarray, cov: np.ndarray, values: np.ndarray) -> float:
        delta = mean - self.mean
        cross = np.sqrt(np.maximum(values, 0)).sum()
        distance = delta @ delta + np.trace(self.cov) + np.trace(cov) - 2 * cross
        return float(max(distance, 0.0))


def frechet_estimates(
    target: Target,
    features: np.ndarray,
    resampling: Resampling = USUAL,
    strata: np.ndarray | None = None,
) -> dict[str, Estimate]:
    """Computes the Frechet distance of samples to the real images, plain and extrapolated.

    Args:
      target: the real images.
      features: `[N, D]` features of the samples, N of at least 2.
      resampling: `splits` is the number of splits over which the distance of halves is averaged.
      strata: `[N]` classes with a fixed number of samples each; None for independent samples.
        Without strata, the extrapolation of such a set would be far too low.

    Returns:
      "fd" of these N samples and, with at least 4 samples, "fd_infinity", which may be slightly
      below 0. Both intervals have the same width. Close to a distance of 0 it is too wide by up to
      about a third.

    Raises:
      ValueError: features do not have the shape `[N, D]`, or values are not finite.
    """
    own = _moments(features, target.mean.size)
    mean, cov = own.mean, own.covariance
    values, vectors = np.linalg.eigh(target._inner(cov))
    plain = target._distance(mean, cov, values)
    influences = _influences(target, features, mean, values, vectors)
    error = _standard_error(influences, strata)
    found = {"fd": interval(plain, error, lowest=0.0)}
    if resampling.splits and len(features) >= 4:
        found["fd_infinity"] = interval(
            _extrapolated(target, features, plain, resampling, strata), error
        )
    if not resampling.subsets:
        return {name: Estimate(estimate.value) for name, estimate in found.items()}
    return found


def _extrapolated(
    target: Target,
    features: np.ndarray,
    plain: float,
    resampling: Resampling,
    strata: np.ndarray | None,
) -> float:
    """The value at 0 of the line in 1 / N through the distances of halves and of all samples."""
    count, rng = len(features), np.random.default_rng(resampling.seed)
    halves, sizes = [], []
    for _ in range(resampling.splits):
        order = spread_order(rng, count, strata)
        for rows in (order[::2], order[1::2]):
            half = _moments(features[np.sort(rows)], target.mean.size)
            halves.append(target.distance(half.mean, half.covariance))
            sizes.append(1 / len(rows))
    slope = (float(np.mean(halves)) - plain) / (float(np.mean(sizes)) - 1 / count)
    return plain - slope / count


def _influences(
    target: Target,
    features: np.ndarray,
    mean: np.ndarray,
    values: np.ndarray,
    vectors: np.ndarray,
) -> np.ndarray:
    """The influence `[N]` of every sample on the distance, up to a constant.

    The derivative of the distance with respect to the covariance C of the samples is
    I - R (R C R)^-1/2 R, where R is the square root of the covariance of the real images; with
    respect to their mean it is twice the difference of the means. `values` and `vectors` are the
    eigenvalues and eigenvectors of R C R.
    """
    roots = np.sqrt(np.maximum(values, 0))
    kept = roots > 1e-6 * roots[-1]  # the samples do not vary along the other directions
    half = target.root @ (vectors[:, kept] / np.sqrt(roots[kept]))
    shift = 2 * (mean - target.mean)
    influences = np.empty(len(features))
    for start in range(0, len(features), _BLOCK):
        block = np.asarray(features[start : start + _BLOCK], np.float64) - mean
        squares = np.einsum("nd,nd->n", block, block) - np.square(block @ half).sum(axis=1)
        influences[start : start + _BLOCK] = squares + block @ shift
    return influences


def _standard_error(influences: np.ndarray, strata: np.ndarray | None) -> float:
    """Standard error of the mean of the influences; with strata, of the variation within them."""
    classes = np.zeros(len(influences), np.int64) if strata is None else strata
    _, of = np.unique(classes, return_inverse=True)
    counts = np.bincount(of)
    centred = influences - (np.bincount(of, influences) / counts)[of]
    freedom = max(len(influences) - len(counts), 1)
    return math.sqrt(float(centred @ centred) / freedom / len(influences))


def _moments(features: np.ndarray, dim: int) -> Moments:
    found = Moments.empty(dim)
    for start in range(0, len(features), _BLOCK):
        found = found.update(features[start : start + _BLOCK])
    return found
