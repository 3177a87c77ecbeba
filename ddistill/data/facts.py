"""What planning and a finished run need of a data set: everything but its images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from ddistill.data.dataset import Dataset
from ddistill.data.encodings import ENCODER, TOKENIZER, EncoderFacts, TokenizerFacts
from ddistill.runtime.schemas import COUNT, FLAG, OBJECT, TEXT, WHOLE, Schema, list_of, object_of


@dataclass(frozen=True)
class DataFacts:
    """A data set without its images.

    Attributes:
      name: see `Dataset`.
      image_shape: (H, W, C).
      class_names: one name a class, at least one.
      class_counts: number of images of each class; 0 for a class without images.
      hflip: whether training mirrors images at random.
      provenance: one line on the source, its split and its hash.
      identity: everything about the split that training on it depends on; see `Dataset`.
      tokenizer: of the captions, which are the conditions; None where class ids are.
      encoder: of a set of latents; None for pixels.
      has_images: False for a set of prompts.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    hflip: bool
    provenance: str
    identity: Mapping[str, str | int | bool]
    tokenizer: TokenizerFacts | None = None
    encoder: EncoderFacts | None = None
    has_images: bool = True

    @classmethod
    def of(cls, dataset: Dataset) -> "DataFacts":
        """The facts of an open data set."""
        counts = np.bincount(np.asarray(dataset.labels), minlength=dataset.num_classes)
        return cls(
            name=dataset.name,
            image_shape=dataset.image_shape,
            class_names=dataset.class_names,
            class_counts=tuple(counts.tolist()),
            hflip=dataset.hflip,
            provenance=dataset.provenance,
            identity=dict(dataset.identity),
            tokenizer=dataset.tokenizer,
            encoder=dataset.encoder,
            has_images=dataset.has_images,
        )

    @classmethod
    def from_json(cls, found: Mapping) -> "DataFacts":
        """The facts in the data.json of a run, an object as `FACTS` describes it."""
        height, width, channels = found["image_shape"]
        return cls(
            name=found["name"],
            image_shape=(height, width, channels),
            class_names=tuple(found["class_names"]),
            class_counts=tuple(found["class_counts"]),
            hflip=found["hflip"],
            provenance=found["provenance"],
            identity=found.get("identity", {}),
            tokenizer=TokenizerFacts.from_json(found["tokenizer"])
            if "tokenizer" in found
            else None,
            encoder=EncoderFacts.from_json(found["encoder"]) if "encoder" in found else None,
            has_images=found.get("has_images", True),
        )

    def to_json(self) -> dict[str, object]:
        """An object as `FACTS` describes it."""
        found: dict[str, object] = {
            "name": self.name,
            "image_shape": list(self.image_shape),
            "class_names": list(self.class_names),
            "class_counts": list(self.class_counts),
            "hflip": self.hflip,
            "provenance": self.provenance,
            "identity": dict(self.identity),
        }
        if self.tokenizer is not None:
            found["tokenizer"] = self.tokenizer.to_json()
        if self.encoder is not None:
            found["encoder"] = self.encoder.to_json()
        return found if self.has_images else {**found, "has_images": False}

    @property
    def num_classes(self) -> int:
        """Number of classes, at least 1."""
        return len(self.class_names)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(self.class_counts)

    @property
    def present(self) -> Bool[np.ndarray, " C"]:
        """Which classes have images."""
        return np.asarray(self.class_counts) > 0

    def images_of(self, classes: Sequence[int] | None) -> int:
        """Number of images of some classes, or of all where `classes` is None."""
        if classes is None:
            return self.num_images
        return sum(self.class_counts[c] for c in set(classes))


def _facts_agree(facts: Mapping) -> str:
    if "encoder" not in facts and facts["image_shape"][2] not in (1, 3):
        return f"key 'image_shape' has {facts['image_shape'][2]} channels, and 1 or 3 are needed"
    if len(facts["class_names"]) != len(facts["class_counts"]):
        return (
            f"key 'class_names' names {len(facts['class_names'])} of "
            f"{len(facts['class_counts'])} classes"
        )
    return ""


# What comparing runs reads of a data.json, also where another version wrote it.
IDENTIFIED = Schema({"identity": OBJECT})

# The data.json of a run.
FACTS = Schema(
    {
        "name": TEXT,
        "image_shape": list_of(COUNT, 3, 3),
        "class_names": list_of(TEXT, 1),
        "class_counts": list_of(WHOLE, 1),
        "hflip": FLAG,
        "provenance": TEXT,
    },
    {
        "identity": OBJECT,
        "tokenizer": object_of(TOKENIZER),
        "encoder": object_of(ENCODER),
        "has_images": FLAG,
    },
    agree=_facts_agree,
)
