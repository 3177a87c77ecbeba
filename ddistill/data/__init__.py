"""Data sets: embedded digits, folders of images, parquet files, TFDS sets, sets of latents.

`load(settings, split)` gives a `Dataset`; `batch_indices` says which examples are in batch s;
`to_unit` and `random_flip` work on the device.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from ddistill.data.augment import random_flip, to_unit
from ddistill.data.batches import batch_indices, read_ahead
from ddistill.data.dataset import SPLITS, Dataset
from ddistill.data.digits import DigitsSettings, count_digits, describe_digits, load_digits
from ddistill.data.folder import FolderSettings, count_folder, describe_folder, load_folder
from ddistill.data.latents.reader import (
    LatentsSettings,
    count_latents,
    describe_latents,
    load_latents,
)
from ddistill.data.parquet import (
    ParquetSettings,
    count_parquet,
    describe_parquet,
    load_parquet,
)
from ddistill.data.summary import summary
from ddistill.data.text_digits import (
    TextDigitsSettings,
    count_text_digits,
    describe_text_digits,
    load_text_digits,
)
from ddistill.data.tfds import TfdsSettings, count_tfds, describe_tfds, load_tfds
from ddistill.errors import ConfigError, DataError, check_choice
from ddistill.parsing import parse, to_plain
from ddistill.typing import Options

__all__ = [
    "Dataset",
    "batch_indices",
    "count",
    "defaults",
    "describe",
    "load",
    "random_flip",
    "read_ahead",
    "read_settings",
    "setting_types",
    "summary",
    "to_unit",
]

S = TypeVar("S")


@dataclasses.dataclass(frozen=True)
class Source(Generic[S]):
    """A kind of data set.

    Attributes:
      settings: the dataclass of its settings.
      load: opens a split, "train" or "test".
      count: number of images of a split, without decoding one.
      describe: one line on the files that this machine has.
    """

    settings: type[S]
    load: Callable[[S, str], Dataset]
    count: Callable[[S, str], int]
    describe: Callable[[S], str]


# By `data.name`. A new source is a line here.
SOURCES: dict[str, Source] = {
    "digits": Source(DigitsSettings, load_digits, count_digits, describe_digits),
    "folder": Source(FolderSettings, load_folder, count_folder, describe_folder),
    "latents": Source(LatentsSettings, load_latents, count_latents, describe_latents),
    "parquet": Source(ParquetSettings, load_parquet, count_parquet, describe_parquet),
    "text_digits": Source(
        TextDigitsSettings, load_text_digits, count_text_digits, describe_text_digits
    ),
    "tfds": Source(TfdsSettings, load_tfds, count_tfds, describe_tfds),
}
SourceSettings: TypeAlias = (
    DigitsSettings
    | FolderSettings
    | LatentsSettings
    | ParquetSettings
    | TextDigitsSettings
    | TfdsSettings
)


def load(settings: Options, split: str) -> Dataset:
    """Opens one split of a data set.

    Args:
      settings: `name`, one of `SOURCES`, and the settings of that source,
        such as `FolderSettings`. None stands for the default.
      split: "train" or "test".

    Raises:
      ConfigError: an unknown key, or a value that cannot be.
      DataError: the data are missing, damaged or do not fit the settings; the message names a
        remedy.
    """
    check_choice("split", split, SPLITS)
    source, own = _source(settings)
    return source.load(own, split)


def count(settings: Options, split: str) -> int:
    """Number of images of a split, without decoding one; unreadable ones are counted too.

    Raises:
      ConfigError, DataError: as `load`, for problems that need no image to be opened.
    """
    check_choice("split", split, SPLITS)
    source, own = _source(settings)
    return source.count(own, split)


def describe(settings: Options) -> str:
    """One line on the data of this machine; an error is part of the text and not raised."""
    try:
        source, own = _source(settings)
        return source.describe(own)
    except (ConfigError, DataError, OSError) as error:
        return f"NOT READY: {error}"


def defaults(name: str) -> dict[str, object]:
    """All settings of a source and their defaults."""
    check_choice("data.name", name, SOURCES)
    return dataclasses.asdict(SOURCES[name].settings())


def read_settings(settings: Options) -> SourceSettings:
    """The settings of a source as its dataclass, with defaults; errors as of `load`."""
    return _source(settings)[1]


def setting_types() -> dict[str, type]:
    """Every setting that a source has, the name apart, with its type."""
    hints = [typing.get_type_hints(source.settings) for source in SOURCES.values()]
    # "flip" is bool or None.
    found = {
        key: bool if kind == bool | None else kind for own in hints for key, kind in own.items()
    }
    del found["name"]
    return found


def _source(settings: Options) -> tuple[Source, SourceSettings]:
    """The source of these settings, and the settings as its dataclass."""
    given = to_plain(settings)
    plain = {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else {}
    if "name" not in plain:
        raise ConfigError(f"data.name is missing. Allowed: {', '.join(sorted(SOURCES))}.")
    name = plain["name"]
    check_choice("data.name", name, SOURCES)
    for key in plain:
        having = [n for n in SOURCES if key in defaults(n)]
        if having and name not in having:
            raise ConfigError(
                f"data.{key} is a setting of data.name={' or '.join(map(repr, having))}, and "
                f"data.name is {name!r}. Known there: {', '.join(sorted(defaults(name)))}."
            )
    return SOURCES[name], parse(plain, SOURCES[name].settings, "data")
