"""Scores at a common number of samples, and their intervals over draws of the samples.

Both use random subsets of the samples, drawn without replacement. A bootstrap draws with
replacement, and its duplicates shorten the distances to nearest neighbours and increase a Frechet
distance. Over subsets of h out of N samples, the variance of a score that averages over samples is
(N - h) / N of the variance over new sets of h samples. So sqrt(h / (N - h)) times the spread over
subsets is the standard error of the score of all N. The reference is never resampled: an interval
is over draws of the samples, at fixed real images.

Sets with a fixed number of images of each class (test sets, samples with labels that cycle through
the classes) vary less than independent draws. Their subsets keep the proportions of the classes;
`strata` names the class of each sample.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

# Quantile of the normal distribution for two-sided 95 % intervals.
NORMAL_QUANTILE = 1.959964
MANY_FEATURES = 512
# Entries of bootstrap draws in memory.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Resampling:
    """Settings of the resampling.

    Attributes:
      subsets: number of random subsets for each interval, and for the mean of a score at a smaller
        count; 0 for no intervals.
      splits: number of random splits into halves for the extrapolation of the Frechet distance; 0
        for no extrapolation.
      seed: seed of all draws.

    Raises:
      ValueError: a number is negative, or `subsets` is 1, which has no spread.
    """

    subsets: int = 100
    splits: int = 8
    seed: int = 2020

    def __post_init__(self) -> None:
        if self.subsets < 0 or self.subsets == 1:
            raise ValueError(f"subsets={self.subsets} must be 0 (no intervals), or 2 or more.")
        for name in ("splits", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more.")

    def for_features(self, features: int) -> "Resampling":
        """With at most one split for many features: a split takes seconds and varies little."""
        return replace(self, splits=min(self.splits, 1)) if features > MANY_FEATURES else self


USUAL = Resampling()


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval.

    Attributes:
      value: the score.
      low, high: ends of the interval; both None without an interval.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Subsets:
    """Subsets of N samples, as masks.

    Attributes:
      masks: `[R + M, N]` bool: R subsets for the interval, then M subsets for the value.
      spread: R; 0 for no interval.
      scale: ratio of the standard error of a score to the spread over the first R subsets.
      means: M if the value is a mean over random subsets, which adds to the error; 0 if all samples
        are scored once.
    """

    masks: np.ndarray
    spread: int
    scale: float
    means: int = 0

    def estimate(
        self, scores: np.ndarray, lowest: float = -math.inf, highest: float = math.inf
    ) -> Estimate:
        """The estimate from the scores `[R + M]` of the masks, its interval clipped to a range."""
        value = float(scores[self.spread :].mean())
        if not self.spread:
            return Estimate(value)
        drawn = 1 / self.means if self.means else 0.0
        error = float(scores[: self.spread].std(ddof=1)) * math.sqrt(self.scale**2 + drawn)
        return interval(value, error, lowest, highest)


def draw_subsets(
    samples: int,
    count: int,
    least: int,
    resampling: Resampling,
    strata: np.ndarray | None = None,
) -> Subsets:
    """Draws the subsets for scores of N samples at a common count.

    Args:
      samples: number of samples N.
      count: size of the subsets for the value, at most N; N scores all samples once.
      least: size of the smallest subset with a score; there is no interval if the subsets for it
        would be smaller.
      resampling: number of subsets and seed.
      strata: `[N]` classes with a fixed number of samples each; None for independent samples.

    Raises:
      ValueError: `count` is not in 1 .. N.
    """
    if not 1 <= count <= samples:
        raise ValueError(f"count={count} must be in 1 .. {samples}, the number of samples.")
    size = min(count, samples // 2)
    rng = np.random.default_rng(resampling.seed)
    many = resampling.subsets

    def masks(number: int, size: int) -> np.ndarray:
        found = np.zeros((number, samples), bool)
        for mask in found:
            mask[subset(rng, samples, size, strata)] = True
        return found

    first = masks(many if size >= least else 0, size)
    if count == samples:
        second = np.ones((1, samples), bool)
    elif count == size and len(first):
        second = first
    else:
        second = masks(max(many, 8), count)
    scale = math.sqrt(size / (samples - size)) if size else 0.0
    means = 0 if count == samples else len(second)
    return Subsets(np.concatenate([first, second]), len(first), scale, means)


def subset(
    rng: np.random.Generator, samples: int, size: int, strata: np.ndarray | None = None
) -> np.ndarray:
    """Indices `[size]` of a random subset that keeps the share of each stratum to within one."""
    return spread_order(rng, samples, strata)[np.arange(size) * samples // size]


def spread_order(
    rng: np.random.Generator, samples: int, strata: np.ndarray | None = None
) -> np.ndarray:
    """Indices `[samples]` in random order within each stratum, one stratum after another."""
    order = rng.permutation(samples)
    return order if strata is None else order[np.argsort(strata[order], kind="stable")]


def interval(
    value: float, error: float, lowest: float = -math.inf, highest: float = math.inf
) -> Estimate:
    """The 95 % interval of a value from its standard error, clipped to a range."""
    width = NORMAL_QUANTILE * error
    low, high = (min(max(end, lowest), highest) for end in (value - width, value + width))
    return Estimate(value, min(low, value), max(high, value))


def ratio_of_means(
    values: np.ndarray, divisors: np.ndarray | None = None, draws: int = 1000, seed: int = 2020
) -> Estimate:
    """The mean of `[N]` values, or its ratio to the mean of `[N]` divisors, with an interval.

    The interval goes from the 2.5 % to the 97.5 % quantile over bootstrap draws of the N entries. A
    mean has no bias from entries that are drawn twice, unlike the scores that need subsets.

    Args:
      values: one value per sample.
      divisors: one divisor per sample, with a positive mean; None for 1.
      draws: number of bootstrap draws.
      seed: seed of the draws.
    """
    values = np.asarray(values, np.float64)
    count, over = len(values), None if divisors is None else np.asarray(divisors, np.float64)
    value = float(values.mean() if over is None else values.mean() / over.mean())
    if count < 2:
        return Estimate(value)
    rng, found = np.random.default_rng(seed), []
    block = max(1, _BLOCK // count)
    for start in range(0, draws, block):
        rows = rng.integers(0, count, (min(block, draws - start), count), dtype=np.int32)
        means = values[rows].mean(axis=1)
        if over is not None:
            totals = over[rows].mean(axis=1)
            # A draw of entries with divisors of 0 alone has no ratio.
            means = np.divide(means, totals, out=np.full_like(means, value), where=totals > 0)
        found.append(means)
    low, high = (float(x) for x in np.quantile(np.concatenate(found), (0.025, 0.975)))
    return Estimate(value, min(low, value), max(high, value))


def share_interval(inside: np.ndarray) -> Estimate:
    """The share of True in `[N]` bool, with the Wilson interval, which is valid at 0 and 1 too."""
    n, share = len(inside), float(np.mean(inside))
    square = NORMAL_QUANTILE**2 / n
    centre = (share + square / 2) / (1 + square)
    width = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    low, high = max(centre - width, 0.0), min(centre + width, 1.0)
    return Estimate(share, min(low, share), max(high, share))  # rounding at 0 and 1


def mean_interval(values: np.ndarray) -> Estimate:
    """The mean of `[N]` non-negative values, with the interval from its standard error."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean)
    return interval(mean, float(np.std(values, ddof=1)) / math.sqrt(len(values)), lowest=0.0)
