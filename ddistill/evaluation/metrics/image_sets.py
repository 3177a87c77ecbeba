"""Images that are to be scored: folders of files, npz and npy files, as uint8."""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

# Larger folders (MiB as uint8) are decoded batch by batch.
IN_MEMORY_MB = 1024.0
# Keys of arrays of images: ADM's sample files, and samples/*.npz of our runs.
IMAGE_KEYS = ("arr_0", "images")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images `[N, H, W, 1 or 3]`.

    Attributes:
      name: of the folder or file, without its path.
      images: `len` and `[indices]` give uint8 arrays.
      digest: of their content, the same on every machine.
      resize: what was done to their size before any network saw them.
      values: what an array held and how it was read, "float32 read as [0, 1]" for example; "" for
        uint8.
    """

    name: str
    images: Any
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
    """Images `start` .. `stop` of a set, for `features.feature_batches`."""

    images: Any
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Images by number within the part."""
        return self.images[np.asarray(indices) + self.start]


def open_image_set(
    path: str | os.PathLike, image_size: int = 0, values: str = "", flag: str = "--range"
) -> ImageSet:
    """Opens a folder of images (all sub-folders included), or an npz or npy file of images.

    Args:
      path: folder, npz file with one of `IMAGE_KEYS`, or npy file.
      image_size: side that images of a folder are brought to; 0 keeps their size, which then has
        to be the same for all. Arrays are taken as they are.
      values: the range of an array that is not uint8, one of `pixel_ranges.RANGES`; "" decides by
        the spread of its values.
      flag: what states `values`, for messages.

    Raises:
      DataError: nothing there, no images, images that cannot be read or of unlike sizes, a file
        without images, or an array whose range or axes are not clear.
    """
    path = expand(path)
    if path.suffix == ".npz":
        with open_npz(path) as file:
            return images_of_npz(path, file, values, flag)
    if path.suffix == ".npy":
        return _as_images(path, Origin(f"{path}: the array", flag), _load(path), values)
    if path.is_file():
        raise DataError(f"{path} is a file; give a folder of images, or an npz or npy file.")
    if values:
        raise DataError(f"{flag}={values} is for arrays; the files in {path} say their own range.")
    return _folder(path, image_size)


def dataset_images(dataset: Dataset, split: str) -> ImageSet:
    """The images of a data set's split, not flipped."""
    pixels = dataset.images
    if isinstance(pixels, np.ndarray):
        pixels = quantise(pixels)
    return ImageSet(f"{dataset.name}-{split}", pixels, digest_of_pixels(pixels))


def digest_of_pixels(images: Any, block: int = 256) -> str:
    """SHA-256 of shape and values of images, which are looked at a block at a time."""
    text = hashlib.sha256(f"{len(images)} {tuple(images.shape[1:])}".encode())
    for start in range(0, len(images), block):
        rows = np.arange(start, min(start + block, len(images)))
        text.update(np.ascontiguousarray(images[rows]).tobytes())
    return text.hexdigest()


def digest_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def open_npz(path: Path) -> Any:
    """`np.load` without pickles.

    Raises:
      DataError: the file is missing, cut off or no npz file.
    """
    file = _load(path)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise DataError(
            f"{path} holds one array and no npz archive. Save it with np.savez, or name it .npy."
        )
    return file


def _load(path: Path) -> Any:
    """What `np.load` gives for a file, without pickles."""
    if not path.is_file():
        what = "is a folder whose name ends as a file's" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}. Give a folder of images or an npz file.")
    if reason := why_unusable(path):
        raise DataError(f"{path} {reason}.")
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an {path.suffix[1:]} file ({error}): it is damaged or cut "
            "off. Copy it again."
        ) from error


def array_of(path: Path, file: Any, key: str) -> np.ndarray:
    """One array of an open npz file.

    Raises:
      DataError: the array is damaged, or holds Python objects.
    """
    try:
        return file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: the array '{key}' cannot be read ({error}).") from error


def images_of_npz(path: Path, file: Any, values: str = "", flag: str = "--range") -> ImageSet:
    """The images of an open npz file; `values` and `flag` as for `open_image_set`.

    Raises:
      DataError: no images in it, two arrays of images, or one whose range or axes are not clear.
    """
    keys = [key for key in IMAGE_KEYS if key in file.files]
    if not keys:
        raise DataError(
            f"{path} holds the arrays {', '.join(file.files) or 'none'}, and no images. Files of "
            f"images have '{IMAGE_KEYS[0]}' (ADM's) or '{IMAGE_KEYS[1]}' (samples of our runs): "
            "[N, H, W, 3], uint8, or other numbers of a clear range. Files of statistics (mu, "
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
    """Samples that a run has kept: in [-1, 1], but of any spread if the student is a poor one."""
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
    # Features that are kept belong to the range that the file was read in; the first was [-1, 1].
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
        advice = "Lay transparent images over a background and save 1 or 3 channels."
    elif len(shape) == 3 and shape[-1] in (1, 3):
        advice = "Of a single image save x[None], of grey images x[..., None]."
    elif len(shape) == 3:
        advice = "Of grey images save x[..., None]."
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
    # Names, sizes and times of change can be equal where pixels are not.
    content = " ".join(file_digest(root / file.path) for file in files)
    identity = digest_of(f"{digest(files)} {content} {spec}")
    resize = f"centre-lanczos-{image_size}" if image_size else "none"
    return ImageSet(root.resolve().name, opened.images, identity, resize)


def _flags(error: Exception) -> str:
    """Messages of `ddistill.data` name a config's settings; here they are flags."""
    text = str(error).replace("data.image_size", "--image_size")
    text = text.replace("--config.data.path=", "another folder instead of ")
    return text.replace("data.path is", "Images lie in").replace("data.path=", "the path ")
