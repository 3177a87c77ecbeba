"""Scores in the features of an Inception network: FID, inception score, KID, precision, recall.

Definitions, defaults and random draws are those of torch-fidelity, so that equal features give
equal numbers: the inception score over 10 splits of shuffled images (arXiv 1606.03498), and KID as
the mean over 100 pairs of subsets of 1000 images (arXiv 1801.01401). All computations are in
float64.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from ddistill.errors import ConfigError
from ddistill.evaluation.metrics.resampling import Resampling

SET_METRICS = ("fid", "is", "kid", "prc")


@dataclass(frozen=True)
class MetricSettings:
    """Settings of the metrics.

    Attributes:
      is_splits: number of parts over which the inception score is averaged.
      kid_subsets: number of pairs of subsets over which KID is averaged.
      kid_subset_size: images per subset.
      neighbours: k of precision and recall.
      density_neighbours: k of density and coverage.
      seed: seed of the shuffle and of the subsets.
      subsets: number of random subsets for the intervals of recall and coverage; 0 for no
        intervals.
      splits: number of splits into halves for the extrapolation of the distance to infinitely many
        images; 0 for none. At 2048 features a split takes some seconds.
    """

    is_splits: int = 10
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3
    density_neighbours: int = 5
    seed: int = 2020
    subsets: int = 20
    splits: int = 1

    def __post_init__(self) -> None:
        for name in ("is_splits", "kid_subsets", "neighbours", "density_neighbours"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}={getattr(self, name)} must be 1 or more.")
        if self.kid_subset_size < 2:
            raise ConfigError(f"--kid_subset_size={self.kid_subset_size} must be 2 or more.")
        if self.subsets < 0 or self.subsets == 1:
            raise ConfigError(f"--subsets={self.subsets} must be 0 (no intervals), or 2 or more.")
        for name in ("splits", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name}={getattr(self, name)} must be 0 or more.")

    @property
    def resampling(self) -> Resampling:
        """Settings of the resampling of distances and neighbourhoods."""
        return Resampling(self.subsets, self.splits, self.seed)


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Mean and standard deviation over the splits of exp E_x KL(p(y|x) || p(y)).

    Args:
      logits: [N, K] without the bias of the layer, as in torch-fidelity and the original code.
      splits: number of parts, of nearly equal size, of the shuffled images.
      seed: seed of the shuffle.

    Raises:
      ConfigError: there are fewer images than splits.
    """
    if len(logits) < splits:
        raise ConfigError(f"--is_splits={splits} is above the number of images ({len(logits)}).")
    # torch-fidelity uses RandomState; a Generator would give other numbers.
    order = np.random.RandomState(seed).permutation(len(logits))
    log_p = log_softmax(np.asarray(logits, np.float64)[order], axis=1)
    edges = [i * len(log_p) // splits for i in range(splits + 1)]
    scores = [_score_of(log_p[start:stop]) for start, stop in itertools.pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def _score_of(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    divergence = (p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1)
    return float(np.exp(divergence.mean()))


def kernel_distance(
    fake: np.ndarray, real: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """KID: squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased.

    Args:
      fake: [N, D] features of samples.
      real: [M, D] features of real images.
      subsets: number of pairs of subsets, drawn without replacement.
      size: images per subset.
      seed: seed of the draws.

    Returns:
      Mean and standard deviation over the subsets. The expectation for equal distributions is 0, so
      the mean may be slightly negative.

    Raises:
      ConfigError: there are fewer images than `size`.
    """
    if size > min(len(fake), len(real)):
        raise ConfigError(
            f"--kid_subset_size={size} is above the number of images: {len(fake)} samples and "
            f"{len(real)} real images. Use a size of at most {min(len(fake), len(real))}, or leave "
            "'kid' out of --metrics."
        )
    rng = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        x = np.asarray(fake[rng.choice(len(fake), size, replace=False)], np.float64)
        y = np.asarray(real[rng.choice(len(real), size, replace=False)], np.float64)
        within = [_off_diagonal_mean(_kernel(a, a)) for a in (x, y)]
        found.append(sum(within) - 2 * _kernel(x, y).mean())
    return float(np.mean(found)), float(np.std(found))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _off_diagonal_mean(matrix: np.ndarray) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))
