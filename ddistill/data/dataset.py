"""The result of every data source: images, labels and their provenance."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from ddistill.data.conditions import Tokens
from ddistill.data.encodings import EncoderFacts, TokenizerFacts
from ddistill.data.words import Word
from ddistill.errors import ConfigError, DataError
from ddistill.text import name_of, printable
from ddistill.typing import HostLabels

SPLITS = ("train", "test")


class ImageStore(Protocol):
    """Images by index: a `np.ndarray`, or `ddistill.data.images.LazyImages`."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> np.ndarray: ...


class NoImages:
    """The images of a set of prompts: their shape is known, and there are none."""

    def __init__(self, shape: tuple[int, ...], title: str):
        self.shape, self._title = shape, title

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        raise DataError(f"{self._title} has prompts and no images.")


@dataclass(frozen=True)
class Reading:
    """The reading of a source as text; see `ddistill.data.summary`.

    Attributes:
      source: the files that were opened.
      split: which images are for training and which for testing.
      flip: why images are mirrored, or not.
      left_out: files that were not read.
      further: how many files hold further frames, of which the first is the image.
    """

    source: str = ""
    split: str = ""
    flip: str = ""
    left_out: tuple[str, ...] = ()
    further: int = 0


# Compared by identity: two arrays have no single truth value.
@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set.

    Attributes:
      name: "digits", or the name of the folder or of the TFDS set, escaped where it cannot be shown
        (`ddistill.text.printable`); so are `class_names` and `provenance`.
      images: `np.ndarray` [N, H, W, C], uint8 in 0..255 or float32 in [-1, 1]; or a store that
        decodes on demand (uint8). Use `take` where it can be either. With an `encoder` moments or
        latents, float16, see `ddistill.data.latents.posterior.draw_latents`.
      labels: int32 [N], 0 .. num_classes - 1.
      num_classes: at least 1.
      class_names: one name a class.
      hflip: whether training mirrors images at random.
      provenance: one line on the source, its split and its hash, for reports.
      skipped: unreadable images that were left out.
      identity: everything about the split that training on it depends on, and nothing else: hashes
        of pixels and labels in their order, shape, number of classes, mirroring. Two sets with
        equal ones are the same to a stage, wherever they lie and however they are read.
      reading: how the source was read.
      texts: columns of texts that the source has beside the images, such as captions: by name, one
        text an image. Training reads `tokens` and not these.
      tokens: int32 [N, L], the token ids of the captions; None for a set without them.
      tokenizer: what made `tokens`.
      encoder: what made `images` where they are moments or latents; None for pixels.
      pictures: uint8 images [N, S, S, C] that latents were made of, where the set keeps them.
      words: words of the captions that can be read off pictures, for scores.
      files: by name the files of the tokenizer and of the autoencoder of latents, as their content
        or their place; a stage that learns from them keeps copies.
    """

    name: str
    images: np.ndarray | ImageStore
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    hflip: bool = False
    provenance: str = ""
    skipped: int = 0
    identity: Mapping[str, str | int | bool] = field(default_factory=dict)
    reading: Reading = Reading()
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tokens: np.ndarray | None = None
    tokenizer: TokenizerFacts | None = None
    encoder: EncoderFacts | None = None
    pictures: np.ndarray | ImageStore | None = None
    words: tuple[Word, ...] = ()
    files: Mapping[str, str | Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Folders can have any name; a run writes these names into its records and pictures.
        object.__setattr__(self, "name", name_of(self.name))
        object.__setattr__(self, "class_names", tuple(map(printable, self.class_names)))
        object.__setattr__(self, "provenance", printable(self.provenance))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) as networks see it: of latents where there is an encoder."""
        height, width, channels = self.images.shape[1:]
        return height, width, self.encoder.channels if self.encoder else channels

    @property
    def conditions(self) -> HostLabels | Tokens:
        """The conditions of all examples, a pytree of arrays [N, ...]: tokens, else class ids."""
        return self.labels if self.tokens is None else Tokens(self.tokens)

    def take_conditions(self, indices: Sequence[int] | np.ndarray) -> HostLabels | Tokens:
        """The conditions of some examples, as `conditions` in the order of `indices`."""
        rows = np.asarray(indices, np.int64)
        return jax.tree.map(lambda x: x[rows], self.conditions)

    @property
    def has_images(self) -> bool:
        """Whether there are images to train on; a set of prompts has none."""
        return not isinstance(self.images, NoImages)

    def as_pictures(self) -> "Dataset":
        """The set itself, or with latents the pictures that they were made of, for scores.

        Raises:
          ConfigError: the set does not keep them.
        """
        if self.encoder is None:
            return self
        if self.pictures is None:
            raise ConfigError(
                f"The latents of {self.name} are scored on their pictures, which the set does not "
                "keep. Make it with `ddistill data latents --pixels=all`, or set "
                "evaluation.enabled=False."
            )
        return replace(self, images=self.pictures, encoder=None)

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images [len(indices), H, W, C] in the order of `indices`; decoded here when lazy.

        Raises:
          IndexError: an index is not in the data set.
          DataError: a file was readable when the set was opened and no longer is.
        """
        return self.images[np.asarray(indices, np.int64)]


def identify(
    pixels: str, labels: np.ndarray, shape: Sequence[int], classes: int, flip: bool
) -> dict[str, str | int | bool]:
    """`Dataset.identity`.

    Args:
      pixels: hash of the images in their order, and whatever else decides their pixels.
      labels: int [N].
      shape: (H, W, C).
      classes: number of classes.
      flip: whether training mirrors.
    """
    return {
        "pixels": pixels,
        "labels": hashlib.sha256(np.asarray(labels, "<i4").tobytes()).hexdigest(),
        "images": len(labels),
        "image_shape": "x".join(str(n) for n in shape),
        "classes": classes,
        "flip": flip,
    }
