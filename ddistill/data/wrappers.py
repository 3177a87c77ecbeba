"""Folders that hold the class folders and nothing else, such as unpacking an archive twice leaves.

In train/train/{cat,dog} or train/images/{cat,dog} the inner folder is no class: the classes are the
folders in it. In train/faces/{alice,bob} it is one: only a name that says nothing of what is on the
images is that of a wrapper.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ddistill.data.names import in_order, split_of, text_of
from ddistill.data.scan import File
from ddistill.text import printable

_USUAL = frozenset(
    (
        "images",
        "image",
        "imgs",
        "img",
        "data",
        "dataset",
        "pictures",
        "photos",
        "jpg",
        "jpeg",
        "png",
    )
)
# Folders over which many images are spread, as FFHQ's 00000, 01000 and so on, rather than classes.
_SPREAD = re.compile(
    r"((part|shard|batch|chunk|dir|folder|vol|disc|disk|tar|v)[-_. ]?\d+|0\d\d+|\d{4,})"
)


class Part(NamedTuple):
    """The files of a set, or of one of its splits.

    Attributes:
      root: the folder that their paths start from.
      files: sorted by name.
      through: the path from the folder of the set or split to `root`, with "/"; "" for the same.
    """

    root: Path
    files: list[File]
    through: str = ""

    @property
    def labels(self) -> set[str]:
        """The folders at the top; "" for files that lie in none."""
        return {file.label for file in self.files}

    @property
    def lone(self) -> str:
        """The one folder at the top, "" where there are several or files beside it."""
        labels = self.labels
        return min(labels) if len(labels) == 1 else ""

    @property
    def how(self) -> str:
        """What was done, in words, to go before the rest; "" for nothing."""
        if not self.through:
            return ""
        return f"classes are the folders in {printable(self.through)}, the one folder there; "


def unwrap(*parts: Part) -> tuple[Part, ...]:
    """The level of the class folders, below the wrappers around them.

    A wrapper is the one folder at the top of every part, and has the name of a usual one (images,
    data and so on), of a folder that it lies in, or of the split. The folders in it must look like
    classes: several in the first part, the same ones or fewer in the others, no files beside them,
    and no names of folders that images are spread over. Otherwise the parts are returned as they
    are.

    Args:
      parts: the training images, then the test images if they have a folder of their own.
    """
    inner = parts
    while all(map(_is_wrapped, inner)):
        inner = tuple(map(_enter, inner))
    first, *others = (part.labels for part in inner)
    classes = len(first) > 1 and "" not in first
    spread = all(_SPREAD.fullmatch(label.lower()) for label in first)
    if not classes or spread or any(labels - first for labels in others):
        return parts
    return inner


def inside_the_class(part: Part, splits: Sequence[str] = ()) -> str:
    """That the one class of a part has sub-folders, and what to do if these are the classes.

    Args:
      part: the training images.
      splits: the names of the folders for training and testing, if there are both.

    Returns:
      Words to go behind the rest, "" where there are no several classes or no such folders.
    """
    inner = part
    while inner.lone:
        inner = _enter(inner)
    labels = inner.labels
    if inner is part or "" in labels:
        return ""
    shown = ", ".join(printable(name) for name in in_order(labels)[:3])
    more = ", ..." if len(labels) > 3 else ""
    advice = f"set data.path={inner.root}"
    if splits:
        advice = (
            f"move them up into {' and '.join(map(printable, splits))}, or {advice}, of which "
            "data.test_fraction is held out"
        )
    return (
        f"; the one class '{printable(part.lone)}' has {len(labels)} sub-folders ({shown}{more}): "
        f"if these are the classes, {advice}"
    )


def below(files: Sequence[File]) -> list[File]:
    """Files with paths that start one folder further down."""
    return [f._replace(name=f.name.partition("/")[2], path=f.path.partition("/")[2]) for f in files]


def _enter(part: Part) -> Part:
    """The files of the one folder at the top, with paths that start there."""
    # As the host spells it, which is not always how the label does.
    root = part.root / part.files[0].path.partition("/")[0]
    through = f"{part.through}/{part.lone}" if part.through else part.lone
    return Part(root, below(part.files), through)


def _is_wrapped(part: Part) -> bool:
    name = part.lone.lower()
    depth = part.through.count("/") + 1 if part.through else 0
    top = Path(os.path.abspath(part.root))
    around = [text_of(folder.name).lower() for folder in (top, *top.parents)][: depth + 1]
    split = split_of(name)
    return bool(name) and (
        name in _USUAL or name in around or (split != "" and split == split_of(around[-1]))
    )
