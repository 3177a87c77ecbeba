"""What every data source gives: images, labels and where they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ddistill.text import name_of, printable

SPLITS = ("train", "test")


class ImageStore(Protocol):
    """Images by index: a `np.ndarray`, or `ddistill.data.images.LazyImages`."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> np.ndarray: ...


# Compared by identity: two arrays have no single truth value.
@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set.

    Attributes:
      name: "digits", or the name of the folder or of the TFDS set, escaped where it cannot be shown
        (`ddistill.text.printable`); so are `class_names` and `provenance`.
      images: `np.ndarray` [N, H, W, C], uint8 in 0..255 or float32 in [-1, 1]; or a store that
        decodes on demand (uint8). Use `take` where it can be either.
      labels: int32 [N], 0 .. num_classes - 1.
      num_classes: at least 1.
      class_names: one name a class.
      hflip: whether training mirrors images at random.
      provenance: one line on the source, its split and its hash; part of what identifies a run.
      skipped: unreadable images that were left out.
    """

    name: str
    images: np.ndarray | ImageStore
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    hflip: bool = False
    provenance: str = ""
    skipped: int = 0

    def __post_init__(self) -> None:
        # Folders may be called anything; a run writes these names into its records and pictures.
        object.__setattr__(self, "name", name_of(self.name))
        object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))
        object.__setattr__(self, "provenance", printable(self.provenance))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images [len(indices), H, W, C] in the order of `indices`; decoded here when lazy.

        Raises:
          IndexError: an index is not in the data set.
          DataError: a file that was fine when the set was opened cannot be read any more.
        """
        return self.images[np.asarray(indices, np.int64)]

    def facts(self) -> dict[str, Any]:
        """What a run that has been trained on the set needs to know of it, without its images."""
        return {
            "name": self.name,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "classes": [int(c) for c in np.unique(self.labels)],
            "class_names": list(self.class_names),
            "hflip": self.hflip,
            "provenance": self.provenance,
        }


def from_facts(facts: Mapping[str, Any]) -> Dataset:
    """A data set of which `facts` are known (`Dataset.facts`): one blank image of every class."""
    labels = np.asarray(facts["classes"], np.int32)
    return Dataset(
        name=facts["name"],
        images=np.broadcast_to(np.uint8(0), (len(labels), *facts["image_shape"])),
        labels=labels,
        num_classes=facts["num_classes"],
        class_names=tuple(facts["class_names"]),
        hflip=facts["hflip"],
        provenance=facts["provenance"],
    )
