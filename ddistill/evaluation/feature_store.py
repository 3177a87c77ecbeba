"""Features of many images on disk, in parts, so that a stopped evaluation goes on where it was.

A set's features lie in a folder named after everything that they depend on. A part is written
beside its place and then renamed, so one that is there is whole. Scores are always computed from
the parts, in their order: whether and where an evaluation was stopped changes no digit.
"""

import os
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddistill.evaluation.detector import Detector
from ddistill.evaluation.features import extract
from ddistill.evaluation.frechet import Moments
from ddistill.evaluation.image_sets import ImageSet, Part, digest_of
from ddistill.training.interrupt import StopRequest
from ddistill.training.progress import Reporter

# Images a part: at 2048 features and 1008 logits about 12 MB, and a minute or two on a CPU.
PART = 1024
FORMAT = 1


@dataclass(frozen=True)
class FeatureStore:
    """The parts of one set's features.

    Attributes:
      parts: files, in the order of the images.
      dim: features an image.
      count: images.
    """

    parts: tuple[Path, ...]
    dim: int
    count: int

    def moments(self) -> Moments:
        """Count, mean and scatter of all features, in float64, one part in memory at a time."""
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
    """Features of all images, those that are in `folder` from an earlier time not computed again.

    Args:
      detector: the network.
      images: what it looks at.
      folder: the set's own folder is made inside.
      reporter, stop: progress and polite stopping, after each part.
      part: images a part.

    Raises:
      Interrupted: a stop was asked for; the parts so far stay.
    """
    network = f"{detector.sha256} {detector.text} {detector.logits}"
    own = folder / digest_of(f"{FORMAT} {images.digest} {len(images)} {network} {part}")[:16]
    own.mkdir(parents=True, exist_ok=True)
    paths = []
    reporter.begin(f"features of {images.name}", len(images))
    try:
        for start in range(0, len(images), part):
            end = min(start + part, len(images))
            path = own / f"part_{start // part:05d}.npz"
            if not _is_whole(path, end - start, detector.dim):
                stop.check(f"the features of {images.name}")
                begun = time.perf_counter()
                _write_part(path, detector, Part(images.images, start, end))
                speed = (end - start) / (time.perf_counter() - begun)
                reporter.advance(end, f"{speed:.1f} images/s")
            paths.append(path)
    finally:
        reporter.end()
    return FeatureStore(tuple(paths), detector.dim, len(images))


def _write_part(path: Path, detector: Detector, images: Part) -> None:
    features, logits = extract(detector.apply, images, detector.batch, pixels=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            logits = np.empty((len(images), 0), np.float32) if logits is None else logits
            np.savez(file, features=features, logits=logits)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_whole(path: Path, count: int, dim: int) -> bool:
    """Whether a part can be read; zip archives carry checksums of what they hold."""
    try:
        with np.load(path) as file:
            return file["features"].shape == (count, dim) and len(file["logits"]) == count
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return False
