"""What every data source gives: images, labels and where they came from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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
      name: "digits", or the name of the folder or of the TFDS set.
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
