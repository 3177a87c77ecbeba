"""Whether the sub-folders of a folder are the splits of a data set or its classes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ddistill.data.names import (
    SPLIT_WORDS,
    TEST,
    TRAIN,
    VALIDATION,
    split_before,
    split_in,
    split_of,
)
from ddistill.data.scan import File
from ddistill.errors import DataError
from ddistill.text import printable

# How `data.splits` tells to read sub-folders; "auto" takes the one reading there is.
READINGS = ("auto", "folders", "none")
_AS_CLASSES = (
    "data.splits='none' to read every folder as a class and hold out data.test_fraction of all "
    "images"
)


class Layout(NamedTuple):
    """Names of the sub-folders with training and test images, and of those that are not used.

    `test` is "" where a share of the training images is held out.
    """

    train: str
    test: str
    unused: tuple[str, ...]


def find_layout(root: Path, files: Sequence[File], reading: str) -> Layout | None:
    """The split folders of a folder of images, or None where its sub-folders are classes.

    Args:
      root: the folder, for messages.
      files: its images.
      reading: one of `READINGS`. "auto" takes folders with the names of `SPLIT_WORDS`, in any case,
        for splits if there are no others beside them.

    Raises:
      DataError: with "auto", folders or files that may be splits and may be classes; or split
        folders of which none, or more than one, is for training or for testing.
    """
    if reading == "none":
        return None
    folders = sorted({file.label for file in files} - {""})
    loose = any(not file.label for file in files)
    exact = {name: split_of(name) for name in folders if split_of(name)}
    if reading == "folders":
        worded = {name: split_in(name) for name in folders if split_in(name)}
        layout = _layout(root, exact if TRAIN in exact.values() else worded or exact, folders)
        beside = ("the images beside the folders",) if loose else ()
        return layout._replace(unused=layout.unused + beside)
    # Loose images beside folders are an error of their own.
    if exact and not loose:
        if len(exact) < len(folders):
            raise _beside_others(root, exact, [f for f in folders if f not in exact])
        layout = _layout(root, exact, folders)
        if not layout.test:
            start = len(layout.train) + 1
            inside = [f._replace(name=f.name[start:]) for f in files]
            _check_no_splits(root / layout.train, inside, ())
        return layout
    _check_no_splits(root, files, folders)
    return None


def _layout(root: Path, splits: dict[str, str], folders: Sequence[str]) -> Layout:
    by_split = {s: [f for f in splits if splits[f] == s] for s in SPLIT_WORDS}
    if not by_split[TRAIN]:
        names = _and(sorted(splits)) if splits else _and(folders)
        where = f"images in {names} but " if names else ""
        raise DataError(
            f"{root} has {where}none in '{TRAIN}'. Name the folder with the training images "
            f"'{TRAIN}', or set {_AS_CLASSES}."
        )
    held_out = by_split[TEST] or by_split[VALIDATION]
    for found, wanted in ((by_split[TRAIN], TRAIN), (held_out, TEST)):
        if len(found) > 1:
            purpose = "train on" if wanted == TRAIN else "test on"
            raise DataError(
                f"{root} has {_and(found)}; rename the one to {purpose} to '{wanted}' and move the "
                f"other away, or set {_AS_CLASSES}."
            )
    used = {*by_split[TRAIN], *held_out}
    unused = tuple(f for f in folders if f not in used)
    return Layout(by_split[TRAIN][0], held_out[0] if held_out else "", unused)


def _beside_others(root: Path, splits: dict[str, str], others: Sequence[str]) -> DataError:
    """The error for folders with the names of splits beside other folders."""
    there = f"{root} has {_quoted(splits)} beside {_quoted(others)}"
    if TRAIN in splits.values():
        return DataError(
            f"{there}: splits, or classes? Set data.splits='folders' to read {_quoted(splits)} as "
            f"splits and leave the others out, or {_AS_CLASSES}."
        )
    return DataError(
        f"{there}: a split beside classes, or all of them classes? Move the others into a folder "
        f"'{TRAIN}' to read {_quoted(splits)} as a split, or set {_AS_CLASSES}."
    )


def _check_no_splits(root: Path, files: Sequence[File], folders: Sequence[str]) -> None:
    """Raises `DataError` where one set may hold the images of several splits."""
    worded = {name: split_in(name) for name in folders if split_in(name)}
    if _mixed(worded.values()):
        raise DataError(
            f"{root} has {_quoted(worded)}: splits, or classes? Set data.splits='folders' to read "
            f"them as splits, or {_AS_CLASSES}."
        )
    below: dict[tuple[str, ...], dict[str, str]] = {}
    for file in files:
        *inside, _ = file.name.split("/")
        depth = 1 if folders else 0
        for i, name in enumerate(inside[depth:], depth):
            if split_of(name) in (VALIDATION, TEST):
                raise _inside_a_class(root, inside[:i], name)
            beside = below.setdefault(tuple(inside[:i]), {})
            if name not in beside:
                beside[name] = split_in(name)
    for above, beside in below.items():
        if _mixed(split for split in beside.values() if split):
            held_out = next(name for name, s in beside.items() if s in (VALIDATION, TEST))
            raise _inside_a_class(root, above, held_out)
    names = [file.name.rpartition("/")[2].rpartition(".")[0] for file in files]
    every = all(split_in(name) for name in names)
    found = [split_in(name) if every else split_before(name) for name in names]
    if _mixed(found):
        held_out = next(s for s in found if s in (VALIDATION, TEST))
        examples = [f"'{printable(files[found.index(s)].name)}'" for s in (TRAIN, held_out)]
        raise DataError(
            f"{root} has {_and(examples)}: do the names of the files tell their splits? Move them "
            f"into folders '{TRAIN}' and '{TEST}' to read them as splits, or set {_AS_CLASSES}."
        )


def _inside_a_class(root: Path, above: Sequence[str], name: str) -> DataError:
    path = "/".join((*above, name))
    if not above:
        return DataError(
            f"{root} has '{printable(path)}': a split, or a class? Move it beside '{root.name}' to "
            f"read it as a split, or set {_AS_CLASSES}."
        )
    return DataError(
        f"{root} has '{printable(path)}': a split inside of '{printable(above[-1])}', or images of "
        f"a class? Set data.path to the folder that holds '{TRAIN}' and '{TEST}' to read it as a "
        f"split, or {_AS_CLASSES}."
    )


def _mixed(splits: Iterable[str]) -> bool:
    found = set(splits)
    return TRAIN in found and bool(found & {VALIDATION, TEST})


def _quoted(names: Iterable[str]) -> str:
    """The first names as a list, and how many more there are."""
    listed = [f"'{printable(name)}'" for name in sorted(names)]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more


def _and(names: Iterable[str]) -> str:
    return " and ".join(printable(name) for name in names)
