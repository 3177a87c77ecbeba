"""Features of many images, in batches of one shape, and the scores computed from them.

`apply` stands for any jitted function of images [batch, H, W, C] float32 in [-1, 1] that returns an
array or a pytree of arrays with leading axis `batch`, for example (logits, features) of a
classifier.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from jaxtyping import PyTree

from ddistill.evaluation.metrics.frechet import moments
from ddistill.evaluation.metrics.frechet_estimates import Target, frechet_estimates
from ddistill.evaluation.metrics.neighbour_estimates import RealBalls, neighbour_estimates
from ddistill.evaluation.metrics.pixels import quantise as to_uint8
from ddistill.evaluation.metrics.precision_recall import class_histogram, total_variation
from ddistill.evaluation.metrics.resampling import USUAL, Estimate, Resampling, draw_subsets

Apply = Callable[[np.ndarray], PyTree]


class Takes(Protocol):
    """Images that are read by index, for example `data.Dataset`."""

    def __len__(self) -> int:
        """Number of images."""

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Images `[len(indices), H, W, C]`."""


Images = np.ndarray | jax.Array | Takes
_ARRAYS = (np.ndarray, jax.Array)


def feature_batches(
    apply: Apply,
    images: Images,
    batch: int,
    *,
    quantise: bool = False,
    pixels: bool = False,
) -> Iterator[PyTree]:
    """Yields the output of `apply` for one batch of images after another, as NumPy arrays.

    The last batch is padded with copies of its first image, so that `apply` compiles only once; the
    padding is removed from the output. While the output of a batch is copied to the host, the
    device computes the next batch. Matrix products run in full float32, because TF32, the default
    on GPUs, shifts Frechet distances.

    Args:
      apply: jitted; see the docstring of the module. It must not mix the images of a batch (no
        batch norm).
      images: `[N, H, W, C]` uint8 or float in [-1, 1], or images that are read by index.
      batch: images per batch.
      quantise: round float images to uint8 first, as files and papers do. uint8 images do not
        change.
      pixels: pass the uint8 values to `apply`, instead of floats in [-1, 1].

    Raises:
      ValueError: there are no images, `batch` is below 1, images are not finite, or an output has
        no leading batch axis.
    """
    count = len(images)
    if batch < 1 or not count:
        raise ValueError(f"Need images and batch >= 1; got {count} images and batch={batch}.")
    pending: tuple[PyTree, int] | None = None
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count))
        block = images[indices] if isinstance(images, _ARRAYS) else images.take(indices)
        block = _network_input(np.asarray(block), quantise or pixels, pixels)
        valid = len(block)
        if valid < batch:
            block = np.concatenate([block, np.repeat(block[:1], batch - valid, axis=0)])
        with jax.default_matmul_precision("float32"):
            output = apply(block)
        if pending is not None:
            yield _to_host(*pending, batch)
        pending = (output, valid)
    if pending is not None:
        yield _to_host(*pending, batch)


def extract(
    apply: Apply,
    images: Images,
    batch: int,
    *,
    quantise: bool = False,
    pixels: bool = False,
) -> PyTree:
    """Concatenates the batches of `feature_batches` along the first axis."""
    parts = list(feature_batches(apply, images, batch, quantise=quantise, pixels=pixels))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def params_hash(params: PyTree, length: int = 8) -> str:
    """Short hash of the names, shapes, types and bytes of a pytree of weights."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:length]


@dataclass(frozen=True)
class Reference:
    """Features of the real images, made by `reference`.

    Attributes:
      features: [N, D].
      target: Gaussian of the features, float64.
      histogram: [K] share of the classes among the real images; None without classes.
      max_neighbours: limit on the images of each set for precision, recall, density and coverage,
        because their time grows with N * M. The images are evenly spaced, so that a set sorted by
        class keeps all classes.
    """

    features: np.ndarray
    target: Target
    histogram: np.ndarray | None = None
    max_neighbours: int = 10_000

    @functools.cached_property
    def balls(self) -> RealBalls:
        """The balls around the real images, with k = 3 and 5."""
        return RealBalls.of(self.features[_thin(len(self.features), self.max_neighbours)])

    @property
    def variance(self) -> float:
        """Sum of the variances of the features: the distance of a generator of the mean image."""
        return float(np.trace(self.target.cov))


@dataclass(frozen=True, eq=False)
class Sampling:
    """How the samples of a score were drawn, and how the score resamples them.

    Attributes:
      count: number of samples for recall, coverage and class shares; None for all.
      strata: [M] classes with a fixed number of samples each; None for independent samples.
      resampling: number of subsets and seed.
    """

    count: int | None = None
    strata: np.ndarray | None = None
    resampling: Resampling = USUAL


ALL_SAMPLES = Sampling()


def reference(
    features: np.ndarray,
    labels: np.ndarray | None = None,
    num_classes: int = 0,
    max_neighbours: int = 10_000,
) -> Reference:
    """Computes the statistics of real features [N, D]; labels [N] give the class histogram."""
    histogram = None if labels is None else class_histogram(labels, num_classes)
    target = Target.of(*moments(features))
    return Reference(np.asarray(features), target, histogram, max_neighbours)


def score(
    real: Reference,
    features: np.ndarray,
    logits: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    sampling: Sampling = ALL_SAMPLES,
) -> dict[str, Estimate]:
    """Scores samples against real images.

    Args:
      real: statistics of the real images.
      features: [M, D] features of the samples.
      logits: [M, K] class logits of the samples; they add "class_tv", the total variation
        between the classes of the samples and of the real images.
      labels: [M] classes on which the samples were conditioned; with logits they add "accuracy".
      sampling: count, classes and resampling.

    Returns:
      Estimates of "fd", "fd_infinity" (with at least 4 samples), "precision", "recall", "density",
      "coverage", and of the scores that logits and labels add.
    """
    resampling, strata = sampling.resampling, sampling.strata
    scores = frechet_estimates(real.target, features, resampling, strata)
    rows = _thin(len(features), real.max_neighbours)
    scores |= neighbour_estimates(
        real.balls,
        features[rows],
        min(sampling.count or len(rows), len(rows)),
        resampling,
        None if strata is None else strata[rows],
    )
    if logits is not None:
        if real.histogram is not None:
            scores["class_tv"] = _class_distance(np.asarray(logits), real.histogram, sampling)
        if labels is not None:
            right = float((np.asarray(logits).argmax(axis=1) == labels).mean())
            scores["accuracy"] = Estimate(right)
    return scores


def fixed_strata(labels: np.ndarray, shares: np.ndarray) -> np.ndarray | None:
    """Returns labels [N] if each class has a fixed number of images, otherwise None.

    A number counts as fixed if it is within one image of the share [K] of the reference, as in a
    split made class by class. Independent draws differ by the square root of the number of images.
    """
    counts = np.bincount(labels, minlength=len(shares))
    if len(counts) != len(shares) or np.abs(counts - shares * len(labels)).max() > 1:
        return None
    return np.asarray(labels)


def _class_distance(logits: np.ndarray, histogram: np.ndarray, sampling: Sampling) -> Estimate:
    """Total variation at the common count, because it decreases with the number of samples."""
    count = min(sampling.count or len(logits), len(logits))
    subsets = draw_subsets(len(logits), count, 1, sampling.resampling, sampling.strata)
    classes = np.eye(len(histogram))[logits.argmax(axis=1)]
    shares = subsets.masks @ classes / subsets.masks.sum(axis=1, keepdims=True)
    found = subsets.estimate(np.array([total_variation(s, histogram) for s in shares]), 0.0, 1.0)
    return found if sampling.resampling.subsets else Estimate(found.value)


def _thin(found: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `found` images, evenly spaced."""
    return np.arange(min(found, most)) * found // min(found, most)


def _network_input(block: np.ndarray, quantise: bool, pixels: bool = False) -> np.ndarray:
    if quantise:
        block = to_uint8(block)
    if pixels:
        return block
    if block.dtype == np.uint8:
        return block.astype(np.float32) / np.float32(127.5) - np.float32(1)
    if block.dtype.kind in "biuc":
        raise ValueError(f"Images are {block.dtype}; uint8 or floats in [-1, 1] are needed.")
    if not np.isfinite(block).all():
        raise ValueError("Images hold values that are not finite; the sampler has diverged.")
    return block.astype(np.float32)


def _to_host(output: PyTree, valid: int, batch: int) -> PyTree:
    def cut(array: jax.Array) -> np.ndarray:
        found = np.asarray(array)
        if found.shape[:1] != (batch,):
            raise ValueError(
                f"The feature function returned shape {found.shape} for a batch of {batch};"
                " every output needs the batch as its first axis."
            )
        return found[:valid]

    return jax.tree.map(cut, output)
