"""The features of a TFDS set that are read as image and label."""

from dataclasses import dataclass

import numpy as np

from ddistill.errors import ConfigError, DataError, nearest

NO_LABELS = "none"


@dataclass(frozen=True)
class Keys:
    """Features of a set.

    Attributes:
      image: the feature with the image.
      label: the feature with the class; "" for none.
      shape: (H, W, C) of the images, with None for sides that differ.
      classes: names of the classes.
    """

    image: str
    label: str
    shape: tuple[int | None, ...]
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB), as the set declares it."""
        return 1 if self.shape[-1] == 1 else 3


def choose_features(features: object, image_key: str, label_key: str, title: str) -> Keys:
    """The features to read as image and label.

    Args:
      features: of the set, as TFDS describes them.
      image_key, label_key: see `TfdsSettings`.
      title: the set in messages.

    Raises:
      ConfigError: a key that is no such feature of the set.
      DataError: the set has no image feature, several to choose from, or one of floats.
    """
    from tensorflow_datasets import features as kinds

    by_name = dict(features) if isinstance(features, kinds.FeaturesDict) else {}
    images = sorted(k for k, f in by_name.items() if type(f) is kinds.Image)
    labels = sorted(k for k, f in by_name.items() if isinstance(f, kinds.ClassLabel))
    image = _choose("image_key", image_key, "image", images, title)
    if not image:
        raise DataError(
            f"TFDS set {title} has no single image feature; its images: "
            f"{', '.join(images) or 'none'}. Set data.image_key to one of them."
        )
    label = ""
    if label_key != NO_LABELS:
        label = _choose("label_key", label_key, "label", labels, title)
    if np.dtype(by_name[image].np_dtype) == np.float32:
        raise DataError(f"Image '{image}' of TFDS set {title} holds floats; 8 or 16 bits needed.")
    classes = tuple(by_name[label].names) if label else ("all",)
    return Keys(image, label, tuple(by_name[image].shape), classes)


def _choose(key: str, given: str, usual: str, there: list[str], title: str) -> str:
    if given and given not in there:
        raise ConfigError(
            f"data.{key}='{given}' is no such feature of {title}.{nearest(given, there)} "
            f"Allowed: {', '.join(there) or 'none'}."
        )
    if given or usual in there:
        return given or usual
    return there[0] if len(there) == 1 else ""
