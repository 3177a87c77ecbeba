"""The reference of a score: images, or statistics in a file.

npz files of statistics have `mu` and `sigma` (EDM; files of EDM2 are pickles). Files of ADM also
have `mu_s` and `sigma_s`, which belong to sFID, and often the images as `arr_0`. Files of ddistill
have `mu` and `sigma`, the name of the feature network, so that another network is refused, and the
features if a score needs them.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from ddistill.errors import ConfigError, DataError
from ddistill.evaluation.metrics.detector import Detector
from ddistill.evaluation.metrics.feature_store import FeatureStore, store_features
from ddistill.evaluation.metrics.image_sets import (
    IMAGE_KEYS,
    ImageSet,
    array_of,
    images_of_npz,
    open_image_set,
    open_npz,
)
from ddistill.interop.edm_pickles import read_objects
from ddistill.interop.tensors import file_digest
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import expand, write_arrays
from ddistill.runtime.interrupt import StopRequest

# The flag for the range of values of a reference.
_FLAG = "--reference_range"
_LABELS = ("name", "count", "images", "resize", "size", "detector", "detector_sha256")


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Statistics of real images.

    Attributes:
      name: name of the folder, file or data set, without its path.
      count: number of images behind mean and covariance; 0 if unknown.
      digest: digest of the file or the images.
      mean, cov: `[D]` and `[D, D]`, float64.
      features: `[N, D]`; None if only statistics are known.
      resize: how the images were resized before the detector.
      size: width and height of the images; "unknown" if the file does not say.
    """

    name: str
    count: int
    digest: str
    mean: np.ndarray
    cov: np.ndarray
    features: np.ndarray | None = None
    resize: str = "unknown"
    size: str = "unknown"

    @property
    def text(self) -> str:
        """Name, number of images and first 8 digits of the hash, for protocols."""
        return f"{self.name}:{self.count or 'unknown'}@{self.digest[:8]}"


@dataclass(frozen=True, eq=False)
class Extraction:
    """Extraction of features.

    Attributes:
      detector: the feature network.
      folder: folder that keeps the features.
      reporter: receives progress.
      stop: the request to stop, checked between batches.
    """

    detector: Detector
    folder: Path
    reporter: Reporter
    stop: StopRequest

    def __call__(self, images: ImageSet) -> FeatureStore:
        """Returns the features of `images`, computed unless `folder` has them."""
        if images.values:
            self.reporter.say(f"{images.name}: {images.values}")
        return store_features(self.detector, images, self.folder, self.reporter, self.stop)


def open_reference(
    path: str | os.PathLike,
    extraction: Extraction,
    features: bool = True,
    image_size: int = 0,
    values: str = "",
) -> ReferenceSet:
    """Opens a reference; the statistics of images are computed.

    Args:
      path: npz file of statistics or images, pickle of statistics of EDM2, npy file of images, or
        folder of images.
      extraction: extracts the features of images.
      features: whether the features are needed, in addition to mean and covariance.
      image_size, values: as for `open_image_set`.

    Raises:
      DataError: see `open_image_set`; also if the statistics belong to another network or are no
        mean and covariance.
      Interrupted: a stop was requested.
    """
    path = expand(path)
    if path.suffix in (".pkl", ".pickle"):
        return _of_pickle(path, extraction.detector)
    if path.suffix != ".npz":
        images = open_image_set(path, image_size, values, _FLAG)
        return reference_of_images(images, extraction, features)
    with open_npz(path) as file:
        if {"mu", "sigma"} <= set(file.files):
            return _statistics(path, file, extraction, features, values)
        if not set(IMAGE_KEYS) & set(file.files):
            raise DataError(
                f"{path} holds the arrays {', '.join(file.files) or 'none'}. A reference has 'mu' "
                "and 'sigma' (statistics of EDM, ADM or ddistill), or images as 'arr_0' or "
                "'images'."
            )
        images = images_of_npz(path, file, values, _FLAG)
    return reference_of_images(images, extraction, features)


def reference_of_images(
    images: ImageSet, extraction: Extraction, features: bool = True
) -> ReferenceSet:
    """The statistics of a set of images.

    Raises:
      DataError: a single image, which has no covariance.
      Interrupted: a stop was requested.
    """
    if len(images) < 2:
        raise DataError(f"{images.name} has {len(images)} image; a covariance needs at least 2.")
    store = extraction(images)
    found = store.moments()
    return ReferenceSet(
        name=images.name,
        count=found.count,
        digest=images.digest,
        mean=found.mean,
        cov=found.covariance,
        features=store.features() if features else None,
        resize=images.resize,
        size=images.size,
    )


def write_reference(path: Path, reference: ReferenceSet, detector: Detector) -> None:
    """Writes statistics atomically as an npz file for `open_reference`.

    The keys `mu` and `sigma` are those of the code of EDM.
    """
    arrays: dict[str, np.ndarray | str | int] = {
        "mu": reference.mean,
        "sigma": reference.cov,
        "name": reference.name,
        "count": reference.count,
        "images": reference.digest,
        "resize": reference.resize,
        "size": reference.size,
        "detector": detector.text,
        "detector_sha256": detector.sha256,
    }
    if reference.features is not None:
        arrays["features"] = reference.features
    write_arrays(path, **arrays)


def _of_pickle(path: Path, detector: Detector) -> ReferenceSet:
    """Reads a pickle of EDM2: statistics of several networks by name, "fid" for the FID."""
    try:
        found = read_objects(path)
    except ConfigError as error:
        raise DataError(str(error)) from None
    fid = found.get("fid", found)
    if not isinstance(fid, dict) or not {"mu", "sigma"} <= set(fid):
        raise DataError(
            f"{path} holds {', '.join(map(repr, found)) or 'nothing'}. A pickle of statistics has "
            "'mu' and 'sigma', or 'fid' with both of them (EDM2's dataset-refs)."
        )
    mean, cov = (_numbers(path, key, fid[key]) for key in ("mu", "sigma"))
    _check_statistics(path, mean, cov, detector)
    return ReferenceSet(path.name, 0, file_digest(path), mean, cov)


def _numbers(path: Path, key: str, value: object) -> np.ndarray:
    try:
        return np.asarray(value).astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{path}: '{key}' is a {type(value).__name__}, not an array.") from None


def _statistics(
    path: Path, file: NpzFile, extraction: Extraction, features: bool, values: str
) -> ReferenceSet:
    detector = extraction.detector
    # In files of other projects, arrays of these names may mean something else.
    own = _LABELS if "detector" in file.files else ()
    labels = {key: array_of(path, file, key).item() for key in own if key in file.files}
    if labels.get("detector", detector.text) != detector.text:
        raise DataError(
            f"{path} holds features of {labels['detector']}, and the samples are scored in "
            f"{detector.text}. Write the reference again with --save_reference."
        )
    mean, cov = (np.asarray(array_of(path, file, k), np.float64) for k in ("mu", "sigma"))
    _check_statistics(path, mean, cov, detector)
    single, count = None, int(labels.get("count", 0))
    if features and "features" in file.files:
        single = array_of(path, file, "features")
        _check_features(path, single, detector)
    elif features and "arr_0" in file.files:
        # Reference files of ADM: their statistics cover more images than they contain.
        single = extraction(images_of_npz(path, file, values, _FLAG)).features()
    return ReferenceSet(
        name=path.name,
        count=count,
        digest=file_digest(path),
        mean=mean,
        cov=cov,
        features=single,
        resize=labels.get("resize", "unknown"),
        size=labels.get("size", "unknown"),
    )


def _check_statistics(path: Path, mean: np.ndarray, cov: np.ndarray, detector: Detector) -> None:
    if mean.ndim != 1 or cov.shape != (mean.size, mean.size):
        raise DataError(
            f"{path}: mu has the shape {mean.shape} and sigma {cov.shape}; they must be [D] and "
            "[D, D]."
        )
    if mean.size != detector.dim:
        raise DataError(
            f"{path} has {mean.size} features, and {detector.text} has {detector.dim}: it was made "
            "with another network, or other features of it (--feature)."
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise DataError(f"{path}: mu or sigma holds values that are not finite.")


def _check_features(path: Path, features: np.ndarray, detector: Detector) -> None:
    if features.ndim != 2 or features.shape[1] != detector.dim:
        raise DataError(
            f"{path}: features has the shape {features.shape}, not [N, {detector.dim}]."
        )
