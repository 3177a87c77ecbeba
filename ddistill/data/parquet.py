"""Images in parquet files, as the Hugging Face hub and `datasets` keep them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import __version__ as PILLOW

from ddistill.data.columns import (
    NO_LABELS,
    check_left,
    class_texts,
    declared_numbers,
    number_classes,
    ordered,
)
from ddistill.data.dataset import SPLITS, Dataset, Reading, identify
from ddistill.data.decode import ImageSpec
from ddistill.data.flip import decide_flip
from ddistill.data.images import Source, decoded, open_images
from ddistill.data.listing import by_hash_in_words, check_fraction, empty_split, held_out
from ddistill.data.memo import Memo
from ddistill.data.names import TEST, TRAIN
from ddistill.data.parquet_files import Tables, find_tables, own_split
from ddistill.data.parquet_rows import Rows
from ddistill.data.scan import digest
from ddistill.errors import ConfigError, DataError, check_choice
from ddistill.runtime.files import expand
from ddistill.text import printable


@dataclass(frozen=True)
class ParquetSettings:
    """Data settings of `parquet`.

    Attributes:
      name: "parquet".
      path: a folder of parquet files, or one file.
      image_column: the column with encoded images; "" = "image", "img", or the only one there is.
      label_column: the column with the classes; "" = "label", or the only one that the schema
        declares as classes, if any; "none" = use no classes.
      image_size: side of the centre square in pixels; 0 = the images' own size, if they share one.
      channels: 1 (grey) or 3 (RGB).
      on_bad_image: "error" names the first row whose image cannot be read; "skip" leaves out all
        such rows.
      flip: mirror at random while training; None = no.
      test_fraction: share of rows for testing where the set has no test or validation split.
      in_memory_limit_mb: larger sets (MiB as uint8) are decoded when batches are made, from row
        groups of which as many MiB are kept.
      workers: threads that decode; 0 = cores + 2.
    """

    name: str = "parquet"
    path: str = ""
    image_column: str = ""
    label_column: str = ""
    image_size: int = 0
    channels: int = 3
    on_bad_image: str = "error"
    flip: bool | None = None
    test_fraction: float = 0.1
    in_memory_limit_mb: float = 2048.0
    workers: int = 0


@dataclass(frozen=True)
class _Chosen:
    """The rows of one of our splits.

    Attributes:
      rows: of the set's own split.
      numbers: int64 [N], which of them.
      labels: int32 [N].
      classes: names of the classes.
      how: how the set was split, in words.
    """

    rows: Rows
    numbers: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    how: str


def load_parquet(settings: ParquetSettings, split: str) -> Dataset:
    """Opens one split of a set of parquet files, in the order of files and rows.

    Raises:
      ConfigError: a setting that cannot be, such as a column that the set does not have.
      DataError: the files are missing, incomplete, damaged or ambiguous, a row has no class or an
        image that cannot be read, or the split has no images.
    """
    root = _checked_root(settings)
    spec, flip = ImageSpec(settings.image_size, settings.channels), decide_flip(settings.flip)
    tables = find_tables(root)
    chosen = _choose_rows(settings, root, tables, split)
    chosen_by = (split, settings.test_fraction, settings.image_column, settings.label_column)
    # Another release of Pillow may decode otherwise.
    key = f"{root.resolve()} {chosen_by} {spec} {digest(tables.files, times=True)} {PILLOW}"
    opened = open_images(
        _source(chosen, spec, root),
        limit_mb=settings.in_memory_limit_mb,
        skip=settings.on_bad_image == "skip",
        workers=settings.workers,
        memo=Memo(key),
    )
    labels, classes = chosen.labels[opened.kept], chosen.classes
    if split == TRAIN:
        check_left(chosen.labels, labels, classes, str(root))
    identity = identify(opened.digest, labels, opened.images.shape[1:], len(classes), flip.on)
    columns = chosen.rows.columns
    bad = (f"{opened.skipped} {split} images that cannot be read",) if opened.skipped else ()
    return Dataset(
        name=root.resolve().stem if root.is_file() else root.resolve().name,
        images=opened.images,
        labels=labels,
        num_classes=len(classes),
        class_names=classes,
        hflip=flip.on,
        provenance=(
            f"parquet files, {split} split, {len(labels)} images ({opened.skipped} skipped), "
            f"{spec}, image '{columns.image}', label '{columns.label or 'none'}', sha256 of pixels "
            f"{opened.digest[:16]}, of labels {str(identity['labels'])[:16]}"
        ),
        skipped=opened.skipped,
        identity=identity,
        reading=Reading(
            f"parquet {root}",
            chosen.how,
            flip.why,
            (*bad, *tables.left_out),
            opened.further,
        ),
        texts=_texts(chosen, opened.kept),
    )


def count_parquet(settings: ParquetSettings, split: str) -> int:
    """Number of rows of a split; rows whose image cannot be read are counted too.

    Raises:
      ConfigError, DataError: as `load_parquet`, for problems that need no image to be decoded.
    """
    root = _checked_root(settings)
    return len(_choose_rows(settings, root, find_tables(root), split).numbers)


def describe_parquet(settings: ParquetSettings) -> str:
    """One line: the set's own splits and how many rows they have."""
    root = _checked_root(settings)
    tables = find_tables(root)
    own_split(tables, TRAIN, str(root))
    counts = [f"{len(_rows(settings, tables, n))} {printable(n)}".strip() for n in tables.splits]
    return f"parquet {root}: {', '.join(counts)} rows in {len(tables.files)} files"


def _checked_root(settings: ParquetSettings) -> Path:
    check_choice("data.on_bad_image", settings.on_bad_image, ("error", "skip"))
    check_fraction(settings.test_fraction)
    if not settings.path:
        raise ConfigError("data.path is missing: set --config.data.path=FOLDER_OF_PARQUET_FILES.")
    return expand(settings.path)


def _rows(settings: ParquetSettings, tables: Tables, name: str) -> Rows:
    return Rows(
        tables.root,
        tables.splits[name],
        settings.image_column,
        settings.label_column,
        settings.in_memory_limit_mb,
    )


def _choose_rows(settings: ParquetSettings, root: Path, tables: Tables, split: str) -> _Chosen:
    own = own_split(tables, split, str(root))
    rows = _rows(settings, tables, own.name)
    labels, classes = _labels(settings, root, tables, rows, split)
    fraction = settings.test_fraction
    if not own.shared:
        if not len(rows):
            raise DataError(f"The split '{own.name}' of {root} has no rows.")
        return _Chosen(
            rows, np.arange(len(rows)), labels, classes, _own_splits_in_words(settings, tables)
        )
    # By number: neither the names of the files nor their number changes what is held out.
    for_test = held_out([f"train/{i}" for i in range(len(rows))], labels, fraction)
    numbers = np.flatnonzero(for_test if split == TEST else ~for_test)
    if not len(numbers):
        raise empty_split(root, split, len(rows), fraction)
    how = by_hash_in_words(for_test, fraction)
    return _Chosen(rows, numbers, labels[numbers], classes, how)


def _labels(
    settings: ParquetSettings, root: Path, tables: Tables, rows: Rows, split: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number of the class of every row, and the names of the classes."""
    column, name = rows.columns.label, own_split(tables, TRAIN, str(root)).name
    training = rows
    if split == TEST and name != own_split(tables, TEST, str(root)).name:
        training = _rows(settings, tables, name)
        _check_same_classes(training, rows, root)
    if not column:
        return np.zeros(len(rows), np.int32), ("all",)
    if rows.columns.classes:
        classes = rows.columns.classes
        return declared_numbers(rows.values(column), classes, rows.name, column), classes
    texts = class_texts(rows.values(column), rows.name, column)
    others = texts
    if training is not rows:
        others = class_texts(training.values(column), training.name, column)
    classes = ordered(others)
    return number_classes(texts, classes, rows.name, f"the split '{name}'"), classes


def _check_same_classes(training: Rows, test: Rows, root: Path) -> None:
    """Raises `DataError` where the numbers of classes mean other classes in the test split."""
    both = [(rows.columns.label, rows.columns.classes) for rows in (training, test)]
    if both[0] != both[1]:
        said = [
            f"{printable(repr(column)) if column else 'no column'} with "
            f"{', '.join(map(printable, classes[:5])) or 'no declared classes'}"
            f"{', ...' if classes[5:] else ''}"
            for column, classes in both
        ]
        raise DataError(
            f"The training split of {root} has its classes in {said[0]}, and the test split in "
            f"{said[1]}. Write both with the same column and the same names in the same order, or "
            f"set data.label_column='{NO_LABELS}' to use the set without classes."
        )


def _own_splits_in_words(settings: ParquetSettings, tables: Tables) -> str:
    train, test = (own_split(tables, s, str(tables.root)).name for s in SPLITS)
    unused = [printable(name or "unnamed") for name in tables.splits if name not in (train, test)]
    counts = [len(_rows(settings, tables, name)) for name in (train, test)]
    return (
        f"by the set's own splits: {counts[0]} training images of '{train}', {counts[1]} test "
        f"images of '{test}'{'; not used: ' if unused else ''}{', '.join(unused)}"
    )


def _texts(chosen: _Chosen, kept: np.ndarray) -> dict[str, tuple[str, ...]]:
    found = {}
    for column in chosen.rows.columns.texts:
        values = chosen.rows.values(column)
        found[column] = tuple(str(values[row] or "") for row in chosen.numbers[kept])
    return found


def _source(chosen: _Chosen, spec: ImageSpec, root: Path) -> Source:
    rows, numbers = chosen.rows, chosen.numbers
    return decoded(
        lambda i: rows.image(int(numbers[i])),
        len(numbers),
        lambda i: rows.name(int(numbers[i])),
        spec,
        str(root),
    )
