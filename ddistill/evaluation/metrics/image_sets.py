"""Images to score, as uint8: folders of image files, npz files and npy files."""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib.npyio import NpzFile

from ddistill.data import Dataset
from ddistill.data.decode import ImageSpec, decode
from ddistill.data.images import ShapeError, Source, open_images
from ddistill.data.memo import Memo
from ddistill.data.scan import digest, scan
from ddistill.errors import DataError
from ddistill.evaluation.metrics.pixel_ranges import RANGES, Origin, to_pixels
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.interop.file_kinds import why_unusable
from ddistill.interop.tensors import file_digest
from ddistill.runtime.files import expand

# Folders with more MiB of uint8 pixels are decoded batch by batch.
IN_MEMORY_MB = 1024.0
# Keys of arrays of images: in sample files of ADM, and in samples/*.npz of a run.
IMAGE_KEYS = ("arr_0", "images")


class Pixels(Protocol):
    """Images `[N, H, W, 1 or 3]` uint8, in memory or decoded on access."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, H, W, C)`."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        """Images `[len(indices), H, W, C]`."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images `[N, H, W, 1 or 3]`.

    Attributes:
      name: name of the folder or file, without its path.
      images: the images.
      digest: digest of their content, equal on every machine.
      resize: how the images were resized before the network.
      values: type and range of an array that is not uint8, for example "float32 read as [0, 1]";
        "" for uint8.
    """

    name: str
    images: Pixels
    digest: str
    resize: str = "none"
    values: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> str:
        """Width and height, as in "32x32"."""
        height, width = self.images.shape[1:3]
        return f"{width}x{height}"


@dataclass(frozen=True, eq=False)
class Part:
    """Images `start` to `stop - 1` of a set, for `features.feature_batches`."""

    images: Pixels
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Images by index within the part."""
        return self.images[np.asarray(indices) + self.start]


def open_image_set(
    path: str | os.PathLike, image_size: int = 0, values: str = "", flag: str = "--range"
) -> ImageSet:
    """Opens a folder of images (all sub-folders included), or an npz or npy file of images.

    Args:
      path: folder, npz file with one of `IMAGE_KEYS`, or npy file.
      image_size: side to which images of a folder are resized; 0 keeps their size, which must then
        be equal for all. Arrays are not resized.
      values: range of an array that is not uint8, one of `pixel_ranges.RANGES`; "" derives it from
        the values.
      flag: name of the flag for `values`, for messages.

    Raises:
      DataError: `path` does not exist or has no images, images are damaged or have different sizes,
        or the range or the axes of an array are ambiguous.
    """
    path = expand(path)
    if path.suffix == ".npz":
        with open_npz(path) as file:
            return images_of_npz(path, file, values, flag)
    if path.suffix == ".npy":
        array = _load(path)
        if isinstance(array, NpzFile):
            raise DataError(f"{path} is an npz archive. Name it .npz.")
        return _as_images(path, Origin(f"{path}: the array", flag), array, values)
    if path.is_file():
        raise DataError(f"{path} is a file; give a folder of images, or an npz or npy file.")
    if values:
        raise DataError(
            f"{flag}={values} is for arrays; image files, as in {path}, define their range."
        )
    return _folder(path, image_size)


def dataset_images(dataset: Dataset, split: str) -> ImageSet:
    """The images of a split of a data set, not flipped."""
    pixels = dataset.images
    if isinstance(pixels, np.ndarray):
        pixels = quantise(pixels)
    return ImageSet(f"{dataset.name}-{split}", pixels, digest_of_pixels(pixels))


def digest_of_pixels(images: Pixels, block: int = 256) -> str:
    """SHA-256 of the shape and the values of images, read in blocks."""
    text = hashlib.sha256(f"{len(images)} {tuple(images.shape[1:])}".encode())
    for start in range(0, len(images), block):
        rows = np.arange(start, min(start + block, len(images)))
        text.update(np.ascontiguousarray(images[rows]).tobytes())
    return text.hexdigest()


def digest_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def open_npz(path: Path) -> NpzFile:
    """Opens an npz file without pickles.

    Raises:
      DataError: the file is missing, truncated or not an npz file.
    """
    file = _load(path)
    if not isinstance(file, NpzFile):
        raise DataError(
            f"{path} holds one array and no npz archive. Save it with np.savez, or name it .npy."
        )
    return file


def _load(path: Path) -> np.ndarray | NpzFile:
    """`np.load` without pickles."""
    if not path.is_file():
        what = "is a folder with the name of a file" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}. Give a folder of images or an npz file.")
    if reason := why_unusable(path):
        raise DataError(f"{path} {reason}.")
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an {path.suffix[1:]} file ({error}): it is damaged or "
            "truncated. Copy it again."
        ) from error


def array_of(path: Path, file: NpzFile, key: str) -> np.ndarray:
    """One array of an open npz file.

    Raises:
      DataError: the array is damaged, or holds Python objects.
    """
    try:
        return file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: the array '{key}' cannot be read ({error}).") from error


def images_of_npz(path: Path, file: NpzFile, values: str = "", flag: str = "--range") -> ImageSet:
    """The images of an open npz file; `values` and `flag` as for `open_image_set`.

    Raises:
      DataError: the file has no images or two arrays of images, or the range or the axes of the
        array are ambiguous.
    """
    keys = [key for key in IMAGE_KEYS if key in file.files]
    if not keys:
        raise DataError(
            f"{path} holds the arrays {', '.join(file.files) or 'none'}, and no images. Files of "
            f"images have '{IMAGE_KEYS[0]}' (ADM) or '{IMAGE_KEYS[1]}' (samples of a run): "
            "[N, H, W, 3], uint8, or other numbers with a clear range. Files of statistics (mu, "
            "sigma) can only be a --reference."
        )
    if len(keys) > 1:
        raise DataError(
            f"{path} holds '{keys[0]}' and '{keys[1]}', and either could be the images. Keep one."
        )
    array, origin = array_of(path, file, keys[0]), Origin(f"{path}: '{keys[0]}'", flag)
    if keys[0] == "images" and "digest" in file.files and not values:
        return _own_samples(path, origin, array)
    return _as_images(path, origin, array, values)


def _own_samples(path: Path, origin: Origin, array: np.ndarray) -> ImageSet:
    """Samples of a run: their range is [-1, 1] by definition, even if a poor student leaves it."""
    _check_axes(origin.where, array.shape)
    try:
        return ImageSet(path.name, quantise(array), file_digest(path))
    except ValueError as error:
        raise DataError(f"{origin.where}: {error}") from None


def _as_images(path: Path, origin: Origin, array: np.ndarray, values: str) -> ImageSet:
    _check_axes(origin.where, array.shape)
    pixels, name = to_pixels(array, origin, values)
    digest, text = file_digest(path), ""
    if name:
        low, high = RANGES[name]
        text = f"{array.dtype} read as [{low:g}, {high:g}]"
    # The range is part of the digest of kept features, except [-1, 1], which came first.
    if name not in ("", "-1,1"):
        digest = digest_of(f"{digest} {name}")
    return ImageSet(path.name, pixels, digest, values=text)


def _check_axes(where: str, shape: tuple[int, ...]) -> None:
    """Raises `DataError` unless an array is [N, H, W, 1 or 3] and nothing else."""
    if len(shape) == 4 and shape[-1] in (1, 3) and shape[1] not in (1, 3) and 0 not in shape:
        return
    advice = ""
    if len(shape) == 4 and shape[1] in (1, 3):
        advice = "Channels come last: if they are axis 1, save x.transpose(0, 2, 3, 1)."
    elif len(shape) == 4 and shape[-1] in (2, 4):
        advice = "Composite transparent images onto a background and save 1 or 3 channels."
    elif len(shape) == 3 and shape[-1] in (1, 3):
        advice = "Save a single image as x[None], grey images as x[..., None]."
    elif len(shape) == 3:
        advice = "Save grey images as x[..., None]."
    raise DataError(f"{where} has the shape {shape}, not [N, H, W, 1 or 3]. {advice}".rstrip())


def _folder(root: Path, image_size: int) -> ImageSet:
    try:
        spec = ImageSpec(image_size, 3)
        files = scan(root).files
        listed = digest(files, times=True)

        def read(number: int) -> np.ndarray:
            path = root / files[number].path
            try:
                return decode(path, spec)
            except ValueError as error:
                raise DataError(f"{path} cannot be read: {error}. Repair or remove it.") from error

        shape = (image_size, image_size, 3) if image_size else None
        source = Source(read, len(files), lambda i: str(root / files[i].path), shape, str(root))
        memo = Memo(f"{root.resolve()} evaluation {spec} {listed}")
        opened = open_images(source, limit_mb=IN_MEMORY_MB, skip=False, workers=0, memo=memo)
    except ShapeError as error:
        raise DataError(_flags(error)) from error
    except ValueError as error:
        raise type(error)(_flags(error)) from error
    # Files with equal names, sizes and modification times may have different pixels.
    content = " ".join(file_digest(root / file.path) for file in files)
    identity = digest_of(f"{digest(files)} {content} {spec}")
    resize = f"centre-lanczos-{image_size}" if image_size else "none"
    return ImageSet(root.resolve().name, opened.images, identity, resize)


def _flags(error: Exception) -> str:
    """Replaces the settings in messages of `ddistill.data` by flags."""
    text = str(error).replace("data.image_size", "--image_size")
    text = text.replace("--config.data.path=", "another folder instead of ")
    return text.replace("data.path is", "Images lie in").replace("data.path=", "the path ")
