"""Any folder of images: one class a sub-folder, or one class in all."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddistill.data.dataset import Dataset
from ddistill.data.decode import ImageSpec, decode
from ddistill.data.flip import wants_flip
from ddistill.data.images import Source, open_images
from ddistill.data.listing import Listing, check_fraction, digest, list_split, scan
from ddistill.data.memo import Memo
from ddistill.errors import ConfigError, DataError, check_choice
from ddistill.runtime.files import expand


@dataclass(frozen=True)
class FolderSettings:
    """Data settings of `folder`.

    Attributes:
      name: "folder".
      path: the folder.
      image_size: side of the centre square in pixels; 0 = the images' own size, if they share one.
      channels: 1 (grey) or 3 (RGB).
      on_bad_image: "error" names the first image that cannot be read; "skip" leaves all such out.
      flip: mirror at random while training; None = yes, unless the folder's name says digits.
      test_fraction: share of images for testing where there are no `train` and `test` folders.
      in_memory_limit_mb: larger sets (MiB as uint8) are decoded when batches are made.
      workers: threads that decode; 0 = cores + 2.
    """

    name: str = "folder"
    path: str = ""
    image_size: int = 0
    channels: int = 3
    on_bad_image: str = "error"
    flip: Any = None
    test_fraction: float = 0.1
    in_memory_limit_mb: float = 2048.0
    workers: int = 0


def load_folder(settings: FolderSettings, split: str) -> Dataset:
    """Opens one split of a folder of images, in the order of their paths.

    Raises:
      ConfigError: a setting that cannot be.
      DataError: see `ddistill.data.listing.list_split` and `ddistill.data.images.open_images`.
    """
    root = _root(settings)
    spec = ImageSpec(settings.image_size, settings.channels)
    check_choice("data.on_bad_image", settings.on_bad_image, ("error", "skip"))
    check_fraction(settings.test_fraction)
    listing = list_split(root, scan(root), split, settings.test_fraction)
    key = f"{listing.root.resolve()} {split} {spec} {digest(listing.files, times=True)}"
    opened = open_images(
        _source(listing, spec),
        limit_mb=settings.in_memory_limit_mb,
        skip=settings.on_bad_image == "skip",
        workers=settings.workers,
        memo=Memo(key),
    )
    labels = np.asarray(listing.labels(), np.int32)[opened.kept]
    name = root.resolve().name
    return Dataset(
        name=name,
        images=opened.images,
        labels=labels,
        num_classes=len(listing.classes),
        class_names=listing.classes,
        hflip=wants_flip(settings.flip, name),
        provenance=(
            f"folder {name}, {split} split, {len(labels)} images ({opened.skipped} skipped), "
            f"{spec}, sha256 of paths and sizes {digest(listing.files)[:16]}"
        ),
        skipped=opened.skipped,
    )


def count_folder(settings: FolderSettings, split: str) -> int:
    """Number of image files of a split.

    Raises:
      DataError: see `ddistill.data.listing.list_split`.
    """
    root = _root(settings)
    check_fraction(settings.test_fraction)
    return len(list_split(root, scan(root), split, settings.test_fraction).files)


def describe_folder(settings: FolderSettings) -> str:
    """One line: how many images of how many classes are there, without decoding them."""
    root = _root(settings)
    found = scan(root)
    train = list_split(root, found, "train", settings.test_fraction)
    try:
        test = len(list_split(root, found, "test", settings.test_fraction).files)
    except DataError:
        test = 0
    return (
        f"folder {root}: {len(train.files)} training and {test} test images, "
        f"{len(train.classes)} classes"
    )


def _root(settings: FolderSettings) -> Path:
    if not settings.path:
        raise ConfigError("data.path is missing: set --config.data.path=FOLDER_OF_IMAGES.")
    return expand(settings.path)


def _source(listing: Listing, spec: ImageSpec) -> Source:
    root, files = listing.root, listing.files

    def read(number: int) -> np.ndarray:
        path = os.path.join(root, files[number].path)
        try:
            return decode(path, spec)
        except ValueError as error:
            raise DataError(
                f"{path} cannot be read: {error}. Repair or remove it, or set "
                "data.on_bad_image='skip' to leave such images out."
            ) from error

    shape = (spec.size, spec.size, spec.channels) if spec.size else None
    return Source(read, len(files), lambda i: str(root / files[i].path), shape, str(root))
