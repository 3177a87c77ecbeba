"""Folders that hold the class folders and nothing else, such as unpacking an archive twice leaves.

In train/train/{cat,dog} or train/images/{cat,dog} the inner folder is no class: the classes are the
folders in it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ddistill.data.scan import File
from ddistill.errors import DataError
from ddistill.text import printable

# Folders over which many images are spread, as FFHQ's 00000, 01000 and so on, rather than classes.
_SPREAD = re.compile(r"((part|shard|batch|chunk|dir|vol|disc|disk|tar)[-_. ]?\d+|0\d\d+|\d{4,})")


class Unwrapped(NamedTuple):
    """Files below a wrapper.

    Attributes:
      root: the folder that their paths start from.
      files: sorted by name.
      through: the path from the folder that was given to `root`, with "/"; "" for the same one.
    """

    root: Path
    files: list[File]
    through: str

    @property
    def how(self) -> str:
        """What was done, in words, to go before the rest; "" for nothing."""
        if not self.through:
            return ""
        return f"classes are the folders in {printable(self.through)}, the one folder there; "


def unwrap(root: Path, files: list[File]) -> Unwrapped:
    """The level at which there are several folders, where every level above it has one alone.

    A single folder with images of its own is a class and stays one.

    Raises:
      DataError: the folders below may be classes, and may be one class's images spread over them.
    """
    here, own, through = root, files, ""
    while len(labels := {file.label for file in own}) == 1 and "" not in labels:
        own = below(own)
        if any(not file.label for file in own):
            return Unwrapped(root, files, "")
        # As the host spells it, which is not always how the label does.
        here = here / files[0].path.split("/")[through.count("/") + bool(through)]
        through = f"{through}/{min(labels)}" if through else min(labels)
    if through and all(_SPREAD.fullmatch(label.lower()) for label in labels):
        _refuse(root, here, through, labels)
    return Unwrapped(here, own, through)


def below(files: Sequence[File]) -> list[File]:
    """Files with paths that start one folder further down."""
    return [f._replace(name=f.name.partition("/")[2], path=f.path.partition("/")[2]) for f in files]


def _refuse(root: Path, here: Path, through: str, labels: set[str]) -> None:
    first, *_, last = sorted(labels)
    raise DataError(
        f"{root} has the folder '{printable(through)}' alone, and that has the folders "
        f"'{printable(first)}' to '{printable(last)}': classes, or the images of one class spread "
        f"over folders? Set data.path={here} to read them as classes, or data.splits='none' with "
        f"data.path={root} to read '{printable(through)}' as one class."
    )
