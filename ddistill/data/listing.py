"""Which images of a folder are of which classes, and which of them are for testing."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddistill.data.layout import Layout, find_layout
from ddistill.data.names import TRAIN, in_order, text_of
from ddistill.data.scan import File
from ddistill.data.wrappers import Part, below, inside_the_class, unwrap
from ddistill.errors import ConfigError, DataError
from ddistill.text import printable


class Description(NamedTuple):
    """What a table of metadata says of the files of a split.

    Attributes:
      classes: names of the classes in their order; () for none.
      numbers: [N] number of the class of every file.
      texts: by column, one text a file.
    """

    classes: tuple[str, ...]
    numbers: tuple[int, ...]
    texts: Mapping[str, Sequence[str]]


class Listing(NamedTuple):
    """The files of one split.

    Attributes:
      root: the folder that their paths start from.
      files: sorted by name.
      folders: the sub-folders that are the classes, in their order; ("",) where there are none.
      how: how the set was split, in words.
      description: classes and texts of a table of metadata, which go before `folders`; None
        without a table.
    """

    root: Path
    files: list[File]
    folders: tuple[str, ...]
    how: str
    description: Description | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; without classes that of the folder itself."""
        if self.description is not None and self.description.classes:
            return tuple(map(printable, self.description.classes))
        if self.folders == ("",):
            return (printable(text_of(self.root.resolve().name)),)
        return tuple(printable(name) for name in self.folders)

    def labels(self) -> list[int]:
        """Number of the class of every file."""
        if self.description is not None:
            return list(self.description.numbers)
        numbers = {name: i for i, name in enumerate(self.folders)}
        return [numbers.get(f.label, 0) for f in self.files]


def list_split(
    root: Path, found: list[File], split: str, test_fraction: float, reading: str = "auto"
) -> Listing:
    """The files of one split.

    Sub-folders that are splits (see `find_layout`) are taken as they are. Otherwise, or where there
    is none for testing, a file is for testing when the hash of its path falls into the first
    `test_fraction` of all hashes, unless its class had no training image then. Classes are looked
    for below wrappers (`ddistill.data.wrappers`), unless `reading` is "none".

    Args:
      root: the folder.
      found: the files that `scan` finds there.
      split: "train" or "test".
      test_fraction: share of files for testing, in [0, 1).
      reading: `data.splits`.

    Raises:
      DataError: images beside class folders, a split without images, a class that is only in the
        test split, or folders and files that may be splits and may be classes.
    """
    layout = find_layout(root, found, reading)
    if layout is None:
        whole = Part(root, found)
        (part,) = (whole,) if reading == "none" else unwrap(whole)
        listing = _by_hash(part.root, part.files, split, test_fraction)
        return listing._replace(how=part.how + listing.how + inside_the_class(part))
    if not layout.test:
        (part,) = unwrap(_inside(root, found, layout.train))
        listing = _by_hash(part.root, part.files, split, test_fraction)
        how = f"inside of {layout.train}: {part.how}{listing.how}{unused_in_words(layout)}"
        return listing._replace(how=how + inside_the_class(part))
    parts = unwrap(*(_inside(root, found, name) for name in (layout.train, layout.test)))
    how = "".join(dict.fromkeys(part.how for part in parts)) + (
        f"by folder: {len(parts[0].files)} training images in {layout.train}, "
        f"{len(parts[1].files)} test images in {layout.test}{unused_in_words(layout)}"
        f"{inside_the_class(parts[0], (layout.train, layout.test))}"
    )
    train, test = (Listing(p.root, p.files, _folders(p.root, p.files), how) for p in parts)
    trouble = _other_classes(train, test)
    if split == TRAIN:
        unusable = f"; these cannot be used: {trouble}" if trouble else ""
        return train._replace(how=how + unusable)
    if trouble:
        raise DataError(trouble)
    return test._replace(folders=train.folders)


def is_test(name: str, test_fraction: float) -> bool:
    """Whether the hash of a name falls into the first `test_fraction` of all hashes."""
    return _place(name) < test_fraction * 2**64


def held_out(
    names: Sequence[str], labels: Sequence[int] | np.ndarray, test_fraction: float
) -> np.ndarray:
    """Which files are for testing, bool [N]: `is_test`, but never all files of a class.

    The file of a class that stays is the one with the largest hash: it would be the last one to
    be held out at a larger fraction.

    Args:
      names: [N] names, which are hashed.
      labels: [N] classes.
      test_fraction: share of files for testing, in [0, 1).
    """
    places = np.array([_place(name) for name in names], np.uint64)
    numbers = np.asarray(labels)
    for_test = np.array([int(place) < test_fraction * 2**64 for place in places], bool)
    for label in np.setdiff1d(numbers, numbers[~for_test]):
        own = np.flatnonzero(numbers == label)
        for_test[own[np.argmax(places[own])]] = False
    return for_test


def check_fraction(test_fraction: float) -> None:
    """Raises `ConfigError` unless the share of test images is in [0, 1)."""
    if not 0 <= test_fraction < 1:
        raise ConfigError(
            f"data.test_fraction={test_fraction} cannot be: at least 0 and less than 1."
        )


def empty_split(where: object, split: str, total: int, test_fraction: float) -> DataError:
    """The error of a split by hash that leaves one side without images."""
    return DataError(
        f"data.test_fraction={test_fraction} leaves no {split} images of the {total} in {where}. "
        f"{'Lower' if split == TRAIN else 'Raise'} it, or give the data a test split of their own."
    )


def by_hash_in_words(for_test: np.ndarray, test_fraction: float) -> str:
    """How a set was split by the hashes of its names."""
    tests = int(np.count_nonzero(for_test))
    return (
        f"by the hash of each name: {len(for_test) - tests} training images, {tests} test images "
        f"(data.test_fraction={test_fraction:g})"
    )


def _by_hash(root: Path, files: list[File], split: str, test_fraction: float) -> Listing:
    listing = Listing(root, files, _folders(root, files), "")
    for_test = held_out([f.name for f in files], listing.labels(), test_fraction)
    wanted = [f for f, test in zip(files, for_test) if test == (split != TRAIN)]
    if not wanted:
        raise empty_split(root, split, len(files), test_fraction)
    return listing._replace(files=wanted, how=by_hash_in_words(for_test, test_fraction))


def _place(name: str) -> int:
    raw = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(raw[:8], "big")


def unused_in_words(layout: Layout) -> str:
    """The sub-folders that are in no split, to go behind the rest; "" for none."""
    if not layout.unused:
        return ""
    shown = ", ".join(printable(name) for name in layout.unused[:5])
    more = f" and {len(layout.unused) - 5} more" if layout.unused[5:] else ""
    return f"; not used: {shown}{more}"


def _inside(root: Path, found: list[File], name: str) -> Part:
    """The files of one sub-folder, with paths that start there."""
    own = [f for f in found if f.label == name]
    # As the host spells it, which is not always how `name` does.
    return Part(root / own[0].path.partition("/")[0], below(own))


def _other_classes(train: Listing, test: Listing) -> str:
    """Why the test images are not of the classes that are trained; "" if they are."""
    if train.folders == test.folders == ("",):
        return ""
    hold_out = f"Or set data.path={train.root} to hold out data.test_fraction of its images."
    if test.folders == ("",):
        return (
            f"{test.root} holds images without class folders, as test sets of competitions do, and "
            f"{train.root} has the classes {_some(train.classes)}: the classes of the test images "
            f"are not known. Sort them into folders of these classes. {hold_out}"
        )
    if train.folders == ("",):
        return (
            f"{test.root} has the class folders {_some(test.classes)}, and {train.root} has none. "
            f"Give both the same ones, or none. {hold_out}"
        )
    unknown = sorted(set(test.folders) - set(train.folders))
    if not unknown:
        return ""
    return (
        f"{test.root} has the class '{printable(unknown[0])}', which {train.root} has not. "
        f"Classes there: {_some(train.classes)}. {hold_out}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")


def _folders(root: Path, files: list[File]) -> tuple[str, ...]:
    """The sub-folders that are classes, numbers in natural order, or ("",) when there are none."""
    labels = {f.label for f in files}
    if labels == {""}:
        return ("",)
    if "" in labels:
        loose = next(f for f in files if not f.label)
        inside = next(f for f in files if f.label)
        raise DataError(
            f"{root} holds images ({printable(loose.name)}) and also folders of images "
            f"({printable(inside.name)}). Either every image lies in the folder of its class, or "
            f"all lie directly in {root.name}: move the images, or the folder "
            f"'{printable(inside.label)}'."
        )
    return in_order(labels)
