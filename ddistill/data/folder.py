"""Any folder of images: one class a sub-folder, classes of a table of metadata, or one class."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import __version__ as PILLOW

from ddistill.data.dataset import Dataset, Reading, identify
from ddistill.data.decode import ImageSpec
from ddistill.data.described import Choice, list_described
from ddistill.data.flip import decide_flip
from ddistill.data.images import Source, decoded, open_images
from ddistill.data.layout import READINGS
from ddistill.data.listing import Listing, check_fraction, list_split
from ddistill.data.memo import Memo
from ddistill.data.metadata import check_no_column, find_tables
from ddistill.data.names import TRAIN
from ddistill.data.scan import Scan, digest, scan
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
      on_bad_image: "error" names the first image that cannot be read; "skip" leaves out all
        such images.
      flip: mirror at random while training; None = no.
      splits: what sub-folders are. "folders": those with the names of splits (train, training;
        test, testing, eval, evaluation; validation, valid, val, dev; in any case) are the splits,
        and others are left out. "none": every sub-folder is a class. "auto": the one of the two
        that it must be; an error if it may be both. Except with "none", a single folder that holds
        only folders is entered: its folders are the classes.
      test_fraction: share of images for testing where no sub-folder is for testing.
      metadata: "auto" reads metadata.jsonl or metadata.csv, of the folder or of its sub-folders,
        where there is one (`ddistill.data.metadata`); "none" leaves them out.
      label_column: the column of the metadata with the classes; "" = "label", if there is one;
        "none" = use no classes.
      in_memory_limit_mb: larger sets (MiB as uint8) are decoded when batches are made.
      workers: threads that decode; 0 = cores + 2.
    """

    name: str = "folder"
    path: str = ""
    image_size: int = 0
    channels: int = 3
    on_bad_image: str = "error"
    flip: bool | None = None
    splits: str = "auto"
    test_fraction: float = 0.1
    metadata: str = "auto"
    label_column: str = ""
    in_memory_limit_mb: float = 2048.0
    workers: int = 0


def load_folder(settings: FolderSettings, split: str) -> Dataset:
    """Opens one split of a folder of images, in the order of their paths.

    Raises:
      ConfigError: a setting that cannot be.
      DataError: see `ddistill.data.listing.list_split` and `ddistill.data.images.open_images`.
    """
    root, spec = _checked_root(settings), ImageSpec(settings.image_size, settings.channels)
    flip = decide_flip(settings.flip)
    found = scan(root)
    listing = _list(settings, root, found, split)
    # Another release of Pillow may decode otherwise.
    key = f"{listing.root.resolve()} {split} {spec} {digest(listing.files, times=True)} {PILLOW}"
    opened = open_images(
        _source(listing, spec),
        limit_mb=settings.in_memory_limit_mb,
        skip=settings.on_bad_image == "skip",
        workers=settings.workers,
        memo=Memo(key),
    )
    labels = np.asarray(listing.labels(), np.int32)[opened.kept]
    if split == TRAIN:
        _check_every_class(listing, labels)
    shape, classes = opened.images.shape[1:], listing.classes
    identity = identify(opened.digest, labels, shape, len(classes), flip.on)
    bad = (f"{opened.skipped} {split} images that cannot be read",) if opened.skipped else ()
    return Dataset(
        name=root.resolve().name,
        images=opened.images,
        labels=labels,
        num_classes=len(classes),
        class_names=classes,
        hflip=flip.on,
        provenance=(
            f"folder of images, {split} split, {len(labels)} images ({opened.skipped} skipped), "
            f"{spec}, sha256 of pixels {opened.digest[:16]}, of labels "
            f"{str(identity['labels'])[:16]}, of paths and sizes {digest(listing.files)[:16]}"
        ),
        skipped=opened.skipped,
        identity=identity,
        reading=Reading(
            f"folder {root}", listing.how, flip.why, (*bad, *found.left_out()), opened.further
        ),
        texts=_texts(listing, opened.kept),
    )


def count_folder(settings: FolderSettings, split: str) -> int:
    """Number of image files of a split.

    Raises:
      DataError: see `ddistill.data.listing.list_split`.
    """
    root = _checked_root(settings)
    return len(_list(settings, root, scan(root), split).files)


def class_counts(settings: FolderSettings) -> dict[str, int]:
    """The number of training images of each class, in the order of the classes.

    A folder without classes is one class of its own name. No image is decoded.

    Raises:
      DataError: see `ddistill.data.listing.list_split`.
    """
    root = _checked_root(settings)
    listing = _list(settings, root, scan(root), TRAIN)
    counts = np.bincount(listing.labels(), minlength=len(listing.classes))
    return dict(zip(listing.classes, counts.tolist()))


def describe_folder(settings: FolderSettings) -> str:
    """One line: how many images of how many classes are there, without decoding them."""
    root = _checked_root(settings)
    found = scan(root)
    train = _list(settings, root, found, TRAIN)
    try:
        test = f"{len(_list(settings, root, found, 'test').files)} test images"
    except DataError as error:
        test = f"0 test images ({error})" if settings.test_fraction else "0 test images"
    left_out = "; ".join(found.left_out())
    classes = f"{len(train.classes)} classes" if len(train.classes) > 1 else "no classes"
    return (
        f"folder {root}: {len(train.files)} training and {test}, {classes}"
        f"{f', not read: {left_out}' if left_out else ''}"
    )


def _list(settings: FolderSettings, root: Path, found: Scan, split: str) -> Listing:
    tables = find_tables(root, found.files) if settings.metadata == "auto" else []
    if not tables:
        check_no_column(settings.label_column, root)
        return list_split(root, found.files, split, settings.test_fraction, settings.splits)
    found.tables.update(tables)
    choice = Choice(settings.label_column, settings.test_fraction, settings.splits)
    return list_described(root, found.files, tables, split, choice)


def _texts(listing: Listing, kept: np.ndarray) -> dict[str, tuple[str, ...]]:
    """The columns of texts of the images that can be read."""
    if listing.description is None:
        return {}
    columns = listing.description.texts
    return {name: tuple(texts[i] for i in kept) for name, texts in columns.items()}


def _check_every_class(listing: Listing, labels: np.ndarray) -> None:
    """Raises `DataError` where no training image of a class can be read."""
    missing = sorted(set(range(len(listing.classes))) - set(labels.tolist()))
    if missing:
        name = listing.classes[missing[0]]
        raise DataError(
            f"No training image of the class '{name}' in {listing.root} can be read, and "
            f"{len(missing)} of {len(listing.classes)} classes are left without any. Repair the "
            "images or remove their folders."
        )


def _checked_root(settings: FolderSettings) -> Path:
    """The folder, after a look at the settings that need no look at it."""
    check_choice("data.on_bad_image", settings.on_bad_image, ("error", "skip"))
    check_choice("data.splits", settings.splits, READINGS)
    check_choice("data.metadata", settings.metadata, ("auto", "none"))
    check_fraction(settings.test_fraction)
    if not settings.path:
        raise ConfigError("data.path is missing: set --config.data.path=FOLDER_OF_IMAGES.")
    return expand(settings.path)


def _source(listing: Listing, spec: ImageSpec) -> Source:
    root, files = listing.root, listing.files
    return decoded(
        lambda i: os.path.join(root, files[i].path),
        len(files),
        lambda i: str(root / files[i].path),
        spec,
        str(root),
    )
