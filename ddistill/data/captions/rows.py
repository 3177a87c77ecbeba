"""The common form of captioned images: rows, and the problems of what is not used."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from ddistill.data.captions.texts import has_markup, normalise, without_markup
from ddistill.data.listing import held_out
from ddistill.errors import DataError
from ddistill.text import printable

# Kinds of problems, in the order of reports.
IMAGE, MISSING, EMPTY, ENCODING = "unreadable image", "no caption", "empty caption", "encoding"
DUPLICATE, UNUSED, MARKUP = "duplicate", "not used", "markup"
KINDS = (IMAGE, MISSING, EMPTY, ENCODING, DUPLICATE, UNUSED, MARKUP)

# Where an image is: the path of a file, a number, or a path with the offset and the size of a part.
Place: TypeAlias = str | int | tuple[str, int, int]
# An image: the path of a file, or the bytes of one.
Content: TypeAlias = str | bytes


class Problem(NamedTuple):
    """One file, row or image that is not used, or is used with a remark.

    Attributes:
      kind: one of `KINDS`.
      where: the file, and the line or the key in it.
      reason: what is wrong.
      kept: whether the row is used nevertheless.
    """

    kind: str
    where: str
    reason: str
    kept: bool = False

    @property
    def line(self) -> str:
        """The problem in one line."""
        return printable(f"{self.where}: {self.reason} ({'kept' if self.kept else 'left out'})")


class Row(NamedTuple):
    """A caption, and where its image is.

    Attributes:
      name: of the image, the same on every host; rows of one image share it.
      caption: text on one line, never empty.
      label: number of the class.
      place: of the image; "" for prompts without images.
      size: bytes of the image.
    """

    name: str
    caption: str
    label: int = 0
    place: Place = ""
    size: int = 0


@dataclass(frozen=True)
class CaptionSource:
    """Captions with their images.

    Attributes:
      kind: the layout, such as "coco".
      title: the files, for messages.
      rows: in a fixed order.
      content: the image of a row; None for prompts without images. It raises `ValueError` with the
        reason, or `OSError`, where the image cannot be read.
      class_names: one name a class.
      problems: everything that is not a row.
    """

    kind: str
    title: str
    rows: Sequence[Row]
    content: Callable[[Row], Content] | None = None
    class_names: tuple[str, ...] = ("captions",)
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        """SHA-256 of names, captions, classes and sizes of the images, in their order."""
        text = hashlib.sha256(f"{self.content is not None}\n".encode())
        for row in self.rows:
            line = f"{row.name}\0{row.caption}\0{row.label}\0{row.size}\n"
            text.update(line.encode("utf-8", "surrogateescape"))
        return text.hexdigest()

    def parts(self, test_fraction: float) -> dict[str, "CaptionSource"]:
        """The splits "train" and, where it has rows, "test".

        An image is for testing where the hash of its name falls into the first `test_fraction` of
        all hashes, with all of its captions, unless its class had no training image then.
        """
        if not test_fraction:
            return {"train": self}
        names, labels = [row.name for row in self.rows], [row.label for row in self.rows]
        for_test = held_out(names, labels, test_fraction)
        chosen = {"train": ~for_test, "test": for_test}
        # The problems belong to the source, and are reported once.
        return {
            split: dataclasses.replace(
                self,
                rows=[self.rows[i] for i in np.flatnonzero(mask).tolist()],
                problems=self.problems if split == "train" else (),
            )
            for split, mask in chosen.items()
            if mask.any()
        }


@dataclass
class Collector:
    """Takes captions and notes what cannot be used; the functions that read layouts fill it.

    Attributes:
      markup: "keep" notes captions with HTML and keeps them, "strip" keeps the text of them.
      rows: captions so far.
      problems: what was noted so far.
    """

    markup: str = "keep"
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: str, where: str, reason: str, kept: bool = False) -> None:
        """Adds a problem."""
        self.problems.append(Problem(kind, where, reason, kept))

    def add(self, where: str, row: Row) -> None:
        """Adds a row if its caption can be used; `where` is for the message."""
        try:
            caption = normalise(row.caption)
            if has_markup(caption):
                self.note(MARKUP, where, f"the caption holds markup, {caption[:80]!r}", kept=True)
                caption = without_markup(caption) if self.markup == "strip" else caption
        except ValueError as error:
            self.note(ENCODING, where, f"the caption {error}")
            return
        if caption:
            self.rows.append(row._replace(caption=caption))
        else:
            self.note(EMPTY, where, "the caption is empty")

    def source(
        self,
        kind: str,
        title: str,
        content: Callable[[Row], Content] | None,
        class_names: tuple[str, ...] = ("captions",),
    ) -> CaptionSource:
        """What was collected.

        Raises:
          DataError: there is no row.
        """
        if not self.rows:
            first = f", for example {self.problems[0].line}" if self.problems else ""
            raise DataError(
                f"{title} holds no caption that can be used: {counted(self.problems)}{first}."
            )
        return CaptionSource(kind, title, self.rows, content, class_names, tuple(self.problems))


def counted(problems: Iterable[Problem]) -> str:
    """The number of problems by kind in words."""
    counts = Counter(problem.kind for problem in problems)
    words = [f"{counts[kind]} x {kind}" for kind in KINDS if counts[kind]]
    return ", ".join(words) or "no problems"
