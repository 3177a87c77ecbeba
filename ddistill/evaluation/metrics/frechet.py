"""The Frechet distance between two sets of features, each approximated by a Gaussian.

    FD = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr (S1^1/2 S2 S1^1/2)^1/2      (arXiv 1706.08500)

With the pooled features of the TF Inception graph and 50 000 samples this is the FID. With other
features it is called FD with the name of the features, see `records.protocol.Protocol.label`.
All computations are in float64 on the host, because a covariance summed in float32 is too
inaccurate.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter matrix of a set of features; immutable.

    Attributes:
      count: number of feature vectors.
      mean: [D] float64.
      scatter: [D, D] float64, the sum of (f - mean)(f - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        """Moments of an empty set of features with dimension `dim`."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    def update(self, features: np.ndarray) -> "Moments":
        """Adds a batch of features [B, D] of any float type.

        Raises:
          ValueError: the shape is not [B, D], or a value is not finite.
        """
        batch = _checked(features, self.mean.size)
        if not len(batch):
            return self
        mean = batch.mean(axis=0)
        centred = batch - mean
        return self.merge(Moments(len(batch), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union, by the pairwise formula of Chan, Golub and LeVeque.

        Sums of squares would be inaccurate if the mean is large compared with the spread.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"Cannot merge moments of {self.mean.size} and of {other.mean.size} features."
            )
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter += np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D] (division by count - 1)."""
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 feature vectors; got {self.count}.")
        return self.scatter / (self.count - 1)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and unbiased covariance [D, D] in float64 of features [N, D], N >= 2."""
    features = np.asarray(features)
    if features.ndim != 2:
        raise ValueError(f"Features must have shape [N, D]; got {features.shape}.")
    result = Moments.empty(features.shape[1]).update(features)
    return result.mean, result.covariance


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Frechet distance between N(mean1, cov1) and N(mean2, cov2); 0 or more.

    tr (cov1 cov2)^1/2 is the sum of the square roots of the eigenvalues of the symmetric matrix
    cov1^1/2 cov2 cov1^1/2. This avoids the matrix square root of an unsymmetric product, so
    singular covariances (fewer samples than features, a constant feature) give neither NaN nor an
    imaginary part; eigenvalues that are negative by rounding count as zero.

    Args:
      mean1: [D].
      cov1: [D, D], symmetric and positive semi-definite.
      mean2: [D].
      cov2: [D, D].

    Raises:
      ValueError: shapes do not fit, values are not finite, or a matrix is not a covariance (it is
        unsymmetric or has an eigenvalue clearly below zero).
    """
    mean1, cov1 = checked_gaussian(mean1, cov1, "first")
    mean2, cov2 = checked_gaussian(mean2, cov2, "second")
    if mean1.shape != mean2.shape:
        raise ValueError(f"The two sets have {mean1.size} and {mean2.size} features.")
    root = symmetric_root(cov1, "first")
    symmetric_root(cov2, "second")  # checks that the second matrix is a covariance
    inner = root @ cov2 @ root
    eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    delta = mean1 - mean2
    distance = delta @ delta + np.trace(cov1) + np.trace(cov2) - 2 * cross
    return float(max(distance, 0.0))  # rounding gives +-1e-14 for equal Gaussians


def symmetric_root(cov: np.ndarray, which: str) -> np.ndarray:
    """The symmetric square root [D, D] of a covariance; `which` names it in the message.

    Raises:
      ValueError: an eigenvalue is clearly below zero.
    """
    values, vectors = np.linalg.eigh(cov)
    # Rounding, at worst of a matrix stored in float32, gives slightly negative eigenvalues.
    floor = 1e-6 * max(float(values[-1]), 0.0) + 1e-12
    if values[0] < -floor:
        raise ValueError(
            f"The {which} covariance has the eigenvalue {values[0]:.3g} < 0; it is no covariance."
        )
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def checked_gaussian(
    mean: np.ndarray, cov: np.ndarray, which: str
) -> tuple[np.ndarray, np.ndarray]:
    """Checks a mean [D] and a covariance [D, D], as float64; `which` names them in messages.

    Raises:
      ValueError: shapes do not fit, values are not finite, or the matrix is unsymmetric.
        `symmetric_root` checks the eigenvalues.
    """
    mean = np.atleast_1d(np.asarray(mean, np.float64))
    cov = np.atleast_2d(np.asarray(cov, np.float64))
    if mean.ndim != 1 or cov.shape != (mean.size, mean.size):
        raise ValueError(
            f"The {which} Gaussian has mean {mean.shape} and covariance {cov.shape};"
            " they must be [D] and [D, D]."
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"The {which} Gaussian has a mean or covariance that is not finite.")
    if not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-9 * max(float(np.abs(cov).max()), 1e-300)):
        raise ValueError(f"The {which} covariance is not symmetric.")
    return mean, (cov + cov.T) / 2


def _checked(features: np.ndarray, dim: int) -> np.ndarray:
    batch = np.asarray(features, np.float64)
    if batch.ndim != 2 or batch.shape[1] != dim:
        raise ValueError(f"Features must have shape [B, {dim}]; got {batch.shape}.")
    if not np.isfinite(batch).all():
        bad = int(np.argmin(np.isfinite(batch).all(axis=1)))
        raise ValueError(
            f"Feature vector {bad} of the batch is not finite: the samples or the feature network"
            " have diverged, and a score would be meaningless."
        )
    return batch
