"""Data sets: the embedded digits, any folder of images, and TFDS sets prepared on this machine.

`load(settings, split)` gives a `Dataset`; `batch_indices` says which examples are in batch s;
`to_unit` and `random_flip` work on the device.
"""

from collections.abc import Mapping
from typing import Any

from ddistill.data.augment import random_flip, to_unit
from ddistill.data.batches import batch_indices, batches
from ddistill.data.dataset import SPLITS, Dataset
from ddistill.data.digits import DigitsSettings, load_digits
from ddistill.data.folder import FolderSettings, load_folder
from ddistill.errors import ConfigError, check_choice
from ddistill.settings import parse, to_plain

__all__ = [
    "Dataset",
    "batch_indices",
    "batches",
    "load",
    "random_flip",
    "to_unit",
]

SOURCES = {"digits": (DigitsSettings, load_digits), "folder": (FolderSettings, load_folder)}


def load(settings: Mapping[str, Any], split: str) -> Dataset:
    """Opens one split of a data set."""
    check_choice("split", split, SPLITS)
    plain = to_plain(settings)
    if "name" not in plain:
        raise ConfigError(f"data.name is missing. Allowed: {', '.join(sorted(SOURCES))}.")
    check_choice("data.name", plain["name"], SOURCES)
    cls, loader = SOURCES[plain["name"]]
    return loader(parse(plain, cls, "data"), split)
