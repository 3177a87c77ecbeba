"""The embedded default: scikit-learn's 1,797 real 8x8 scans of handwritten digits.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (CC BY 4.0), the
copy that scikit-learn carries, so nothing is downloaded.
"""

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddistill.data.dataset import Dataset, Reading, identify
from ddistill.data.flip import decide_flip

COUNT = 1797
TEST_EVERY = 5


@dataclass(frozen=True)
class DigitsSettings:
    """Data settings of `digits`.

    Attributes:
      name: "digits".
      flip: mirror at random while training; None = no, because mirrored digits are no digits.
    """

    name: str = "digits"
    flip: bool | None = None


def load_digits(settings: DigitsSettings, split: str) -> Dataset:
    """1,437 training or 360 test images [N, 8, 8, 1], float32 in [-1, 1] from 17 grey levels."""
    levels, labels = read_scans()
    train, test = split_digits(levels, labels)
    chosen = train if split == "train" else test
    images = levels[chosen].astype(np.float32)[..., None] / 8 - 1
    digest = hashlib.sha256(np.concatenate([levels[train], levels[test]]).tobytes()).hexdigest()
    flip = decide_flip(settings.flip)
    pixels = hashlib.sha256(images.astype("<f4").tobytes()).hexdigest()
    return Dataset(
        name="digits",
        images=images,
        labels=labels[chosen],
        num_classes=10,
        class_names=tuple("0123456789"),
        hflip=flip.on,
        provenance=(
            f"scikit-learn digits 8x8, {split} split, {len(chosen)} of {len(labels)} images, "
            f"split sha256 {digest[:16]}"
        ),
        identity=identify(pixels, labels[chosen], images.shape[1:], 10, flip.on),
        reading=Reading(
            source="scikit-learn's digits",
            split=f"every fifth scan of a class for testing: {len(train)} training images, "
            f"{len(test)} test images",
            flip=flip.why,
        ),
    )


@functools.cache
def read_scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans, uint8 [1797, 8, 8] with values 0..16, and their int32 digits [1797].

    The file of scikit-learn is read without importing scikit-learn, which takes longer than all
    other work before the first step of a small run. It is read once, and the arrays are read-only.
    """
    path = _file()
    if path is None:
        from sklearn import datasets

        bunch = datasets.load_digits()
        levels, labels = np.asarray(bunch.images, np.uint8), np.asarray(bunch.target, np.int32)
    else:
        table = np.loadtxt(path, delimiter=",")
        levels = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8)
        labels = table[:, -1].astype(np.int32)
    levels.flags.writeable = labels.flags.writeable = False
    return levels, labels


def _file() -> Path | None:
    """Where the installed scikit-learn keeps the scans; None for a version with another layout."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return path if path.is_file() else None


def count_digits(settings: DigitsSettings, split: str) -> int:
    """Number of images of a split."""
    return len(load_digits(settings, split))


def describe_digits(settings: DigitsSettings) -> str:
    """One line on the embedded set."""
    del settings
    return f"digits: {COUNT} scans of 8x8 pixels, embedded in scikit-learn"


def split_digits(levels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and test images: every fifth of each class is for testing.

    Within a class the order is that of the hash of the pixels, so the split depends on no random
    generator of any library, and two identical scans would lie beside each other.

    Args:
      levels: [N, 8, 8] uint8, 0..16.
      labels: [N].

    Returns:
      Two sorted index arrays, disjoint, together all of 0 .. N-1.
    """
    digests = [hashlib.sha256(image.tobytes()).digest() for image in levels]
    order = sorted(range(len(labels)), key=lambda i: (int(labels[i]), digests[i], i))
    is_test = np.zeros(len(labels), bool)
    is_test[order[::TEST_EVERY]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
