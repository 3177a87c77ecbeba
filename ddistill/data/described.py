"""Images of a folder with a table of metadata: their splits, classes and texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddistill.data.columns import (
    NO_LABELS,
    check_column,
    class_texts,
    number_classes,
    ordered,
)
from ddistill.data.layout import Layout, find_layout
from ddistill.data.listing import (
    Description,
    Listing,
    by_hash_in_words,
    empty_split,
    held_out,
    unused_in_words,
)
from ddistill.data.metadata import TABLES, Metadata, check_described, read_metadata
from ddistill.data.names import TRAIN, split_of
from ddistill.data.scan import File
from ddistill.errors import DataError
from ddistill.text import printable

_LABEL = "label"


@dataclass(frozen=True)
class Choice:
    """How a folder with metadata is to be read; the settings of `FolderSettings`."""

    label_column: str
    test_fraction: float
    splits: str


def list_described(
    root: Path, files: Sequence[File], tables: Sequence[Path], split: str, choice: Choice
) -> Listing:
    """The files of one split, with classes and texts from tables of metadata.

    Splits are those of `find_layout`; without a test split, images are held out by the hash of
    their path. Classes are the values of a column, in order.

    Args:
      root: the folder.
      files: its images.
      tables: its tables.
      split: "train" or "test".
      choice: settings.

    Raises:
      ConfigError: the column of the classes does not exist.
      DataError: see `read_metadata`; an image has no row or no class; sub-folders and table may
        both give the classes; or a split is without images.
    """
    metadata = read_metadata(root, tables, files)
    layout = _layout(root, files, choice.splits)
    training = _of(files, layout.train) if layout else list(files)
    check_described(metadata, training)
    column = _column(root, training, metadata, choice.label_column, layout)
    texts = _class_texts(metadata, training, column) if column else []
    classes = ordered(texts) if column else ()
    numbers = _numbers(metadata, training, column, classes, root)
    if layout and layout.test:
        tests = _of(files, layout.test)
        how = (
            f"by folder: {len(training)} training images in {layout.train}, {len(tests)} test "
            f"images in {layout.test}{unused_in_words(layout)}"
        )
        chosen = training
        if split != TRAIN:
            check_described(metadata, tests)
            numbers, chosen = _numbers(metadata, tests, column, classes, root), tests
    else:
        for_test = held_out([f.name for f in training], numbers, choice.test_fraction)
        kept = [i for i, test in enumerate(for_test) if test == (split != TRAIN)]
        if not kept:
            raise empty_split(root, split, len(training), choice.test_fraction)
        chosen, numbers = [training[i] for i in kept], [numbers[i] for i in kept]
        how = by_hash_in_words(for_test, choice.test_fraction)
    source = f"'{printable(column)}' of the metadata" if column else "none"
    own = Description(classes, tuple(numbers), metadata.texts(chosen, column))
    return Listing(root, chosen, ("",), f"{how}; classes: {source}", own)


def _of(files: Sequence[File], folder: str) -> list[File]:
    return [file for file in files if file.label == folder]


def _layout(root: Path, files: Sequence[File], reading: str) -> Layout | None:
    loose = [file.name for file in files if not file.label]
    splits = sorted({f.label for f in files if split_of(f.label)})
    if loose and splits and reading == "auto":
        raise DataError(
            f"{root} has the image {printable(loose[0])} beside the folder '{splits[0]}': a split, "
            "or not? Move the image into a folder, or set data.splits='none' to read all images as "
            "one set."
        )
    return find_layout(root, files, reading)


def _column(
    root: Path, files: Sequence[File], metadata: Metadata, given: str, layout: Layout | None
) -> str:
    """The column with the classes, or "" for none."""
    if given == NO_LABELS:
        return ""
    if given:
        check_column("data.label_column", given, metadata.columns, f"the metadata of {root}")
        return given
    start = len(layout.train) + 1 if layout else 0
    folders = [file.name[start:].rpartition("/")[0] for file in files]
    several = len(set(folders)) > 1
    if _LABEL not in metadata.columns:
        if several:
            raise _ambiguous(root, metadata, f"no column '{_LABEL}', and there are sub-folders")
        return ""
    if several:
        texts = _class_texts(metadata, files, _LABEL)
        pairs = set(zip(folders, texts))
        if not len(pairs) == len(set(folders)) == len(set(texts)):
            raise _ambiguous(root, metadata, f"a column '{_LABEL}' that differs from the folders")
    return _LABEL


def _ambiguous(root: Path, metadata: Metadata, why: str) -> DataError:
    columns = ", ".join(map(printable, metadata.columns)) or "none"
    return DataError(
        f"{root} has {TABLES[0]} or {TABLES[1]} with {why}: which are the classes? Set "
        f"data.label_column to a column ({columns}) or to '{NO_LABELS}', or data.metadata='none' "
        "to take the folders."
    )


def _class_texts(metadata: Metadata, files: Sequence[File], column: str) -> list[str]:
    return class_texts(metadata.values(files, column), lambda i: metadata.name(files[i]), column)


def _numbers(
    metadata: Metadata, files: Sequence[File], column: str, classes: Sequence[str], root: Path
) -> list[int]:
    if not column:
        return [0] * len(files)
    texts = _class_texts(metadata, files, column)
    name = lambda i: metadata.name(files[i])  # noqa: E731
    return number_classes(texts, classes, name, f"the training split of {root}").tolist()
