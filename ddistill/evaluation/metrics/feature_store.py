"""Features of many images on disk, in parts, so that a stopped evaluation can continue.

The features of a set are in a folder named by a digest of everything that they depend on. Parts are
written atomically, so a part on disk is complete. Scores are always computed from the parts in
order, so a stop does not change them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddistill.evaluation.metrics.detector import Detector
from ddistill.evaluation.metrics.features import feature_batches
from ddistill.evaluation.metrics.frechet import Moments
from ddistill.evaluation.metrics.image_sets import ImageSet, Part, digest_of
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import read_arrays, write_arrays
from ddistill.runtime.interrupt import StopRequest
from ddistill.runtime.leftovers import remove_leftovers

# Images per part: 6 MB with 2048 features and 1008 logits, about two minutes on two CPU cores.
PART = 512
FORMAT = 1


@dataclass(frozen=True)
class FeatureStore:
    """The features of one set of images, in parts.

    Attributes:
      parts: files, in the order of the images.
      dim: number of features D per image.
      count: number of images.
    """

    parts: tuple[Path, ...]
    dim: int
    count: int

    def moments(self) -> Moments:
        """Count, mean and scatter of all features in float64, with one part in memory at a time."""
        found = Moments.empty(self.dim)
        for features in self._arrays("features"):
            found = found.update(features)
        return found

    def features(self) -> np.ndarray:
        """`[count, dim]` float32."""
        return np.concatenate(list(self._arrays("features")))

    def logits(self) -> np.ndarray:
        """`[count, K]` float32."""
        return np.concatenate(list(self._arrays("logits")))

    def _arrays(self, name: str) -> Iterator[np.ndarray]:
        for path in self.parts:
            with np.load(path) as file:
                yield file[name]


def store_features(
    detector: Detector,
    images: ImageSet,
    folder: Path,
    reporter: Reporter,
    stop: StopRequest,
    part: int = PART,
) -> FeatureStore:
    """Computes the features of all images, except parts that are in `folder` already.

    Args:
      detector: the feature network.
      images: the images.
      folder: parent of the folder of this set.
      reporter: receives progress.
      stop: the request to stop, checked between batches.
      part: images per part.

    Raises:
      Interrupted: a stop was requested; complete parts stay on disk.
    """
    network = f"{detector.sha256} {detector.text} {detector.logits}"
    content = f"{FORMAT} {images.digest} {len(images)} {network} {part}"
    own = folder / digest_of(content)[:16]
    own.mkdir(parents=True, exist_ok=True)
    remove_leftovers(own)
    paths = []
    reporter.begin(f"features of {images.name}", len(images))
    try:
        for start in range(0, len(images), part):
            end = min(start + part, len(images))
            path = own / f"part_{start // part:05d}.npz"
            if not _is_whole(path, end - start, detector.dim):
                piece = Part(images.images, start, end)
                _write_part(path, *_compute(detector, piece, images.name, reporter, stop))
            paths.append(path)
    finally:
        reporter.end()
    return FeatureStore(tuple(paths), detector.dim, len(images))


def _compute(
    detector: Detector, images: Part, name: str, reporter: Reporter, stop: StopRequest
) -> tuple[np.ndarray, np.ndarray]:
    """Features `[N, dim]` and logits `[N, K]` of a part; K = 0 for a network without logits."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    done, first, begun = 0, 0, time.perf_counter()
    stop.check(f"the features of {name}")
    for features, logits in feature_batches(detector.apply, images, detector.batch, pixels=True):
        stop.check(f"the features of {name}")
        none = np.empty((len(features), 0), np.float32)
        found.append((features, none if logits is None else logits))
        done += len(features)
        if not first:  # the first batch may include compilation
            first, begun = done, time.perf_counter()
            reporter.advance(images.start + done, "")
            continue
        speed = (done - first) / (time.perf_counter() - begun)
        reporter.advance(images.start + done, f"{speed:.1f} images/s")
    features, logits = (np.concatenate(arrays) for arrays in zip(*found))
    return features, logits


def _write_part(path: Path, features: np.ndarray, logits: np.ndarray) -> None:
    write_arrays(path, features=features, logits=logits)


def _is_whole(path: Path, count: int, dim: int) -> bool:
    """Whether a part is readable and complete; zip archives carry checksums."""
    found = read_arrays(path, ("features", "logits"))
    if found is None or found["features"].shape != (count, dim):
        return False
    return found["logits"].ndim == 2 and len(found["logits"]) == count
