"""Samples and real images as a published protocol sees them; counts are checked strictly."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ddistill.data import Dataset, load
from ddistill.data.names import natural_key
from ddistill.data.scan import scan
from ddistill.errors import ConfigError, DataError, nearest
from ddistill.evaluation.metrics.geometry import Geometry, of_each, through_jpeg
from ddistill.evaluation.metrics.image_sets import (
    ImageSet,
    Pixels,
    array_of,
    dataset_images,
    digest_of,
    open_image_set,
    open_npz,
)
from ddistill.evaluation.metrics.protocols import ImageProtocol, Prompts
from ddistill.evaluation.metrics.reference_sets import (
    Extraction,
    ReferenceSet,
    open_reference,
    reference_of_images,
)
from ddistill.interop.tensors import file_digest
from ddistill.runtime.files import expand

# The file that makes a folder a latent set.
_SET = "dataset.json"
# Options of a `Geometry` that are those of the images that a latent set keeps.
_AS_KEPT = {"crop": True, "filter": "lanczos", "jpeg": 0}

Fit = Callable[[Image.Image], UInt8[np.ndarray, "S S 3"]]


@dataclass(frozen=True, eq=False)
class FittedFiles:
    """Image files, of one size after `fit`; decoded on access.

    Attributes:
      paths: the files.
      fit: from an opened image to pixels.
      side: width and height after it.
    """

    paths: tuple[Path, ...]
    fit: Fit
    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, side, side, 3)`."""
        return len(self.paths), self.side, self.side, 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        return of_each(self._read, [self.paths[int(i)] for i in indices])

    def _read(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return self.fit(image)
        # Pillow's decoders raise whatever the damage leads to.
        except Exception as error:
            raise DataError(f"{path} cannot be read: {error}. Repair or replace it.") from None


@dataclass(frozen=True, eq=False)
class FittedArrays:
    """Images of an array, of one size after `fit`.

    Attributes:
      images: uint8 images of any size.
      fit: from an image to pixels.
      side: width and height after it.
    """

    images: Pixels
    fit: Fit
    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, side, side, 3)`."""
        return len(self.images), self.side, self.side, 3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
        return fitted(self.images[indices], self.fit)


def fitted(images: UInt8[np.ndarray, "B H W C"], fit: Fit) -> UInt8[np.ndarray, "B S S 3"]:
    """Images of an array after `fit`; C is 1 or 3."""

    def one(pixels: np.ndarray) -> np.ndarray:
        return fit(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))

    return of_each(one, list(images))


def sample_fit(protocol: ImageProtocol) -> Fit:
    """What a protocol does to a sample: the JPEG file of the sample, unless it is one, then fit."""

    def fit(image: Image.Image) -> np.ndarray:
        quality = 0 if image.format == "JPEG" else protocol.stored
        return protocol.geometry(through_jpeg(image.convert("RGB"), quality))

    return fit


def sample_set(
    path: str | os.PathLike, prompts: Prompts, fit: Fit, side: int, name: str
) -> ImageSet:
    """The samples of prompts, image i of prompt i.

    Args:
      path: a folder of images in natural order (2.png before 10.png), or by the names of files that
        the prompts have; or an npz or npy file of images.
      prompts: the prompts.
      fit: from an image to the pixels that are scored.
      side: width and height of these pixels.
      name: of `fit`, for digests and protocols.

    Raises:
      DataError: there are more or fewer images than prompts, an image of a prompt is missing, or as
        of `open_image_set`.
    """
    path = expand(path)
    if path.is_dir():
        files = _files_of(path, prompts)
        _check_count(path, len(files), prompts)
        return _of_files(path, files, (fit, side, name))
    found = open_image_set(path)
    _check_count(path, len(found), prompts)
    images = FittedArrays(found.images, fit, side)
    return ImageSet(found.name, images, digest_of(f"{found.digest} {name}"), name, found.values)


def _check_count(path: Path, found: int, prompts: Prompts) -> None:
    if found != len(prompts.texts):
        raise DataError(
            f"{path} has {found:,} images, and {prompts.name} {len(prompts.texts):,} prompts; one "
            "image for each prompt is needed, in their order."
        )


def _files_of(root: Path, prompts: Prompts) -> tuple[Path, ...]:
    names = sorted((file.path for file in scan(root).files), key=natural_key)
    if not prompts.files:
        return tuple(root / name for name in names)
    # A table may name "0.jpg" where a program has written 0.png.
    by_stem = {os.path.splitext(name)[0]: name for name in names}
    stems = [os.path.splitext(name)[0] for name in prompts.files]
    missing = [stem for stem in stems if stem not in by_stem]
    if missing:
        raise DataError(
            f"{root} lacks {len(missing):,} of the images that {prompts.name} names, the first is "
            f"{missing[0]!r}.{nearest(missing[0], list(by_stem)[:1000])}"
        )
    return tuple(root / by_stem[stem] for stem in stems)


def _of_files(root: Path, files: tuple[Path, ...], fit: tuple[Fit, int, str]) -> ImageSet:
    content = hashlib.sha256()
    for path in files:
        content.update(file_digest(path).encode())
    images = FittedFiles(files, fit[0], fit[1])
    return ImageSet(
        root.resolve().name, images, digest_of(f"{content.hexdigest()} {fit[2]}"), fit[2]
    )


def check_real(path: str | os.PathLike, protocol: ImageProtocol, key: str) -> None:
    """Checks real images without reading their pixels.

    Args:
      path: as of `protocol_reference`.
      protocol: the protocol.
      key: the setting, for messages.

    Raises:
      DataError: they are missing or of another number; or a latent set, or statistics, of images of
        another size.
    """
    root = expand(path)
    if not root.exists():
        raise DataError(f"{key}={path} does not exist. Give the folder of {protocol.source}.")
    if root.suffix == ".npz":
        _check_statistics(root, protocol, key)
    elif not root.is_dir():
        raise DataError(f"{key}={path} is a file; give a folder of images, or statistics (.npz).")
    elif (root / _SET).is_file():
        _kept(root, protocol, key)
    elif (found := len(scan(root).files)) != protocol.real:
        raise DataError(
            f"{key}={path} has {found:,} images; {protocol.name} compares with "
            f"{protocol.real:,} ({protocol.source})."
        )


def _check_statistics(path: Path, protocol: ImageProtocol, key: str) -> None:
    with open_npz(path) as file:
        found = [array_of(path, file, n).item() if n in file else None for n in ("count", "resize")]
    wanted = [protocol.real, str(protocol.geometry)]
    if found != wanted:
        raise DataError(
            f"{key}={path} holds statistics of {found[0] or 'an unknown number of'} images, resize "
            f"{found[1] or 'unknown'}; {protocol.name} needs {wanted[0]} images, resize "
            f"{wanted[1]}. Give the folder of images, or write the file again with --protocol and "
            "--save_reference."
        )


def real_set(path: str | os.PathLike, protocol: ImageProtocol, key: str) -> ImageSet:
    """The real images of a protocol.

    Args:
      path: a folder of images of any size, which are brought to the protocol's, or a latent set
        that keeps them.
      protocol: the protocol.
      key: the setting, for messages.

    Raises:
      DataError: as of `check_real`; or a latent set whose images are of another size or number.
    """
    check_real(path, protocol, key)
    root, geometry = expand(path), protocol.geometry
    if (root / _SET).is_file():
        images = dataset_images(*_kept(root, protocol, key))
        digest = digest_of(f"{images.digest} {geometry}")
        return ImageSet(root.resolve().name, images.images, digest, str(geometry))
    files = tuple(root / file.path for file in scan(root).files)
    return _of_files(root, files, (geometry, geometry.side, str(geometry)))


def _kept(root: Path, protocol: ImageProtocol, key: str) -> tuple[Dataset, str]:
    """The images that a latent set keeps, and their split: centre squares, resized with Lanczos."""
    geometry = protocol.geometry
    if geometry != Geometry(geometry.side, **_AS_KEPT):  # type: ignore[arg-type]
        raise DataError(
            f"{key}={root} is a latent set, of centre squares that were resized with Lanczos; "
            f"{protocol.name} needs {geometry}. Give the folder of images."
        )
    counts = {}
    for split in ("train", "test"):
        try:
            found = load({"name": "latents", "path": str(root)}, split).as_pictures()
        except (ConfigError, DataError) as error:
            counts[split] = str(error)
            continue
        side = tuple(found.image_shape[:2])
        if len(found) == protocol.real and side == (geometry.side, geometry.side):
            return found, split
        counts[split] = f"{len(found):,} images of {side[1]}x{side[0]}"
    listed = "; ".join(f"{split}: {text}" for split, text in counts.items())
    raise DataError(
        f"{key}={root} keeps no split of {protocol.real:,} images of {geometry.side}x"
        f"{geometry.side}, as {protocol.name} needs ({listed})."
    )


def protocol_reference(
    path: str | os.PathLike | ImageSet, protocol: ImageProtocol, extraction: Extraction, key: str
) -> ReferenceSet:
    """The statistics of the real images of a protocol.

    Args:
      path: as of `real_set`, or what that has opened, or statistics that --save_reference has
        written under this protocol.
      protocol: the protocol.
      extraction: extracts features.
      key: the setting, for messages.

    Raises:
      DataError: as of `real_set` and `open_reference`; or statistics of another number of images or
        of images that were resized in another way.
      Interrupted: a stop was requested.
    """
    if isinstance(path, ImageSet):
        return reference_of_images(path, extraction, features=False)
    file = expand(path)
    if file.suffix != ".npz":
        return reference_of_images(real_set(path, protocol, key), extraction, features=False)
    check_real(path, protocol, key)
    return open_reference(file, extraction, features=False)
