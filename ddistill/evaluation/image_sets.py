"""Images that are to be scored: folders of files and npz files, as uint8."""

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
from ddistill.evaluation.images import quantise
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
    """

    name: str
    images: Any
    digest: str
    resize: str = "none"

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


def open_image_set(path: str | os.PathLike, image_size: int = 0) -> ImageSet:
    """Opens a folder of images (all sub-folders included) or an npz file of images.

    Args:
      path: folder, or npz file with one of `IMAGE_KEYS`.
      image_size: side that images of a folder are brought to; 0 keeps their size, which then has
        to be the same for all. npz files are taken as they are.

    Raises:
      DataError: nothing there, no images, images that cannot be read or of unlike sizes, or an npz
        file without images.
    """
    path = expand(path)
    if path.suffix == ".npz":
        with open_npz(path) as file:
            return images_of_npz(path, file)
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
    if not path.is_file():
        raise DataError(f"{path} does not exist. Give a folder of images or an npz file.")
    try:
        file = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an npz file ({error}): it is damaged or cut off. Copy it "
            "again."
        ) from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds one array and no npz archive. Save it with np.savez.")
    return file


def array_of(path: Path, file: Any, key: str) -> np.ndarray:
    """One array of an open npz file.

    Raises:
      DataError: the array is damaged, or holds Python objects.
    """
    try:
        return file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: the array '{key}' cannot be read ({error}).") from error


def images_of_npz(path: Path, file: Any) -> ImageSet:
    """The images of an open npz file.

    Raises:
      DataError: no images in it, or images of another form than uint8, or float in [-1, 1].
    """
    keys = [key for key in IMAGE_KEYS if key in file.files]
    if not keys:
        raise DataError(
            f"{path} holds the arrays {', '.join(file.files) or 'none'}, and no images. Files of "
            f"images have '{IMAGE_KEYS[0]}' (ADM's) or '{IMAGE_KEYS[1]}' (samples of our runs): "
            "[N, H, W, 3], uint8, or float in [-1, 1]. Files of statistics (mu, sigma) can only be "
            "a --reference."
        )
    pixels = array_of(path, file, keys[0])
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3) or not len(pixels):
        raise DataError(f"{path}: '{keys[0]}' has the shape {pixels.shape}, not [N, H, W, 1 or 3].")
    if pixels.dtype != np.uint8:
        _check_floats(path, keys[0], pixels)
        pixels = quantise(pixels)
    return ImageSet(path.name, pixels, file_digest(path))


def _check_floats(path: Path, key: str, pixels: np.ndarray) -> None:
    """Samplers may leave [-1, 1] a little; values beyond 8 are on another scale."""
    where = f"{path}: '{key}' ({pixels.dtype})"
    if not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(f"{where} must be uint8, or float in [-1, 1].")
    if not np.isfinite(pixels).all():
        raise DataError(f"{where} holds values that are not finite; the sampler has diverged.")
    low, high = float(pixels.min()), float(pixels.max())
    if max(-low, high) > 8 or low >= 0:
        raise DataError(
            f"{where} has values from {low:.3g} to {high:.3g}. Floats have to be in [-1, 1]; save "
            "images of values 0 to 255 as uint8."
        )


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
