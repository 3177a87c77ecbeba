"""Scores in the features of an Inception network: FID, inception score, KID, precision, recall.

Definitions, defaults and random draws are those of torch-fidelity, so that equal features give
equal numbers: the inception score over 10 splits of images in shuffled order (arXiv 1606.03498),
and KID as the mean over 100 pairs of subsets of 1000 images (arXiv 1801.01401). Everything is
computed in float64.
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
    """What the numbers depend on beside the features.

    Attributes:
      is_splits: parts of which the inception score is the mean.
      kid_subsets: pairs of subsets of which KID is the mean.
      kid_subset_size: images in each.
      neighbours: k of precision and recall.
      density_neighbours: k of density and coverage.
      seed: of the shuffle and of the subsets.
      subsets: random subsets behind the intervals of recall and coverage; 0 for no intervals.
      splits: splits into halves behind the distance's extrapolation to infinitely many images; 0
        for none. At 2048 features each takes some seconds.
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
        """How distances and neighbourhoods are resampled."""
        return Resampling(self.subsets, self.splits, self.seed)


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)), its mean and standard deviation over the splits.

    Args:
      logits: [N, K], without the layer's bias as torch-fidelity and the first authors have it.
      splits: the images, shuffled, are cut into so many parts of nearly one size.
      seed: of the shuffle.

    Raises:
      ConfigError: fewer images than splits.
    """
    if len(logits) < splits:
        raise ConfigError(f"--is_splits={splits} is more than there are images ({len(logits)}).")
    # RandomState's numbers are those of torch-fidelity; a Generator's would be others.
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
      subsets: pairs of subsets, each drawn without replacement.
      size: images in each.
      seed: of the draws.

    Returns:
      Mean and standard deviation over the subsets; the mean of equal distributions is 0 and may
      come out a little below.

    Raises:
      ConfigError: fewer images than a subset has.
    """
    if size > min(len(fake), len(real)):
        raise ConfigError(
            f"--kid_subset_size={size} is more than there are images: {len(fake)} samples and "
            f"{len(real)} real ones. Use a size of at most {min(len(fake), len(real))}, or leave "
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
