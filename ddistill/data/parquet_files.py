"""The parquet files of a set, and the splits that their names and folders tell.

Sets on the Hugging Face hub have one of these forms, possibly inside of further folders:

    data/train-00000-of-00002.parquet, data/train-00001-of-00002.parquet, data/test-...
    train/0000.parquet, test/0000.parquet
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ddistill.data.names import (
    SPLIT_WORDS,
    TEST,
    TRAIN,
    VALIDATION,
    natural_key,
    split_in,
    split_of,
)
from ddistill.data.scan import File, Wanted, file_of, scan
from ddistill.errors import DataError
from ddistill.text import printable

PARQUET = Wanted((".parquet",), "parquet files", "data.path is a folder of parquet files, or one.")
# Older releases of `datasets` add a hash.
_SHARD = re.compile(r"(?:(?P<name>.+)-)?(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]{8,})?")
_COUNTED = re.compile(r"[-_. ]*\d+$")
_SHOWN = 5


class Tables(NamedTuple):
    """The files of a set.

    Attributes:
      root: the folder that their paths start from.
      splits: files in order, by the set's own name of their split; "" for a set without splits.
      left_out: what else is in the folder, in words.
    """

    root: Path
    splits: Mapping[str, Sequence[File]]
    left_out: tuple[str, ...]

    @property
    def files(self) -> list[File]:
        """All files."""
        return [file for files in self.splits.values() for file in files]


class Own(NamedTuple):
    """The set's own split from which a split is taken.

    Attributes:
      name: its name, a key of `Tables.splits`.
      shared: whether a share of it is held out, because no split is for testing.
    """

    name: str
    shared: bool


def find_tables(root: Path) -> Tables:
    """The files of a set by split.

    Args:
      root: a folder, or one parquet file.

    Raises:
      DataError: there are none, shards are missing, or it is not clear which files are one set.
    """
    if root.is_file() and root.suffix.lower() == ".parquet":
        files = [file_of(root)]
        return Tables(root.parent, _by_name(root, files), ())
    found = scan(root, PARQUET)
    files, through = found.files, ""
    while len(folders := {f.label for f in files}) == 1 and (lone := min(folders)):
        if split_of(lone):
            break
        through += f"{lone}/"
        files = [f._replace(name=f.name.partition("/")[2]) for f in files]
    where = root / through if through else root
    loose = sorted(f.name for f in files if not f.label)
    if loose and len(folders) > 1:
        raise DataError(
            f"{where} has {printable(loose[0])} beside the folders {_listed(folders - {''})}: one "
            "set, or several? Set data.path to the file or the folder of one set."
        )
    splits = _by_name(where, files) if loose else _by_folder(where, files)
    return Tables(root, splits, found.left_out())


def own_split(tables: Tables, split: str, title: str) -> Own:
    """The set's own split from which `split`, "train" or "test", is taken.

    Raises:
      DataError: no split is for training, or several may be meant.
    """
    names = list(tables.splits)
    if len(names) == 1 and (split_of(names[0]) or split_in(names[0])) != TEST:
        return Own(names[0], True)
    exact = {s: [n for n in names if split_of(n) == s] for s in SPLIT_WORDS}
    worded = {s: [n for n in names if split_in(n) == s] for s in SPLIT_WORDS}
    own = {s: exact[s] or worded[s] for s in SPLIT_WORDS}
    held_out = own[TEST] or own[VALIDATION]
    for found, purpose in ((own[TRAIN], TRAIN), (held_out, TEST)):
        if len(found) > 1:
            raise DataError(
                f"{title} has the splits {_listed(found)}, and it is not clear which is '{purpose}'"
                f". Rename the files of that one to {purpose}-*.parquet and move the others away."
            )
    if not own[TRAIN]:
        raise DataError(
            f"{title} has no split '{TRAIN}'; it has {_listed(names)}. Name the files with the "
            f"training images {TRAIN}-*.parquet, or set data.path to one set."
        )
    if not held_out:
        return Own(own[TRAIN][0], True)
    return Own((own[TRAIN] if split == TRAIN else held_out)[0], False)


def _by_name(where: Path, files: Sequence[File]) -> dict[str, list[File]]:
    groups: dict[str, list[File]] = {}
    for file in sorted(files, key=lambda f: natural_key(f.name)):
        stem = file.name.rpartition(".")[0]
        shard = _SHARD.fullmatch(stem)
        name = (shard["name"] or "") if shard else _COUNTED.sub("", stem)
        groups.setdefault(name, []).append(file)
    for own in groups.values():
        _check_shards(where, own)
    if len(groups) > 1 and not any(split_of(n) or split_in(n) for n in groups):
        raise DataError(
            f"{where} has files of the names {_listed(groups)}: splits, or parts of one? Name them "
            f"{TRAIN}-*.parquet and {TEST}-*.parquet, or set data.path to one of the files."
        )
    return groups


def _by_folder(where: Path, files: Sequence[File]) -> dict[str, list[File]]:
    groups: dict[str, list[File]] = {}
    for file in sorted(files, key=lambda f: natural_key(f.name)):
        groups.setdefault(file.label, []).append(file)
    others = [name for name in groups if not split_of(name)]
    if others:
        raise DataError(
            f"{where} has the folders {_listed(groups)}, and {_listed(others)} are no names of "
            f"splits: several sets? Set data.path to one of them, for example "
            f"{where / others[0]}."
        )
    for own in groups.values():
        _check_shards(where, own)
    return groups


def _check_shards(where: Path, files: Sequence[File]) -> None:
    """Raises `DataError` unless files that are numbered "i of n" are complete."""
    stems = [f.name.rpartition("/")[2].rpartition(".")[0] for f in files]
    shards = [shard for stem in stems if (shard := _SHARD.fullmatch(stem))]
    if not shards:
        return
    counts = {int(shard["count"]) for shard in shards}
    numbers = [int(shard["number"]) for shard in shards]
    first = printable(files[0].name)
    if len(counts) > 1 or len(shards) < len(files) or len(set(numbers)) < len(numbers):
        raise DataError(
            f"{where} has {len(files)} files like {first} of more than one numbering. Leave only "
            "the files of one set there."
        )
    (count,) = counts
    missing = sorted(set(range(count)) - set(numbers))
    if missing or len(numbers) != count:
        listed = ", ".join(map(str, missing[:_SHOWN])) or "none"
        raise DataError(
            f"{where} has {len(files)} of the {count} files like {first}; missing numbers: "
            f"{listed}. Copy them there, or set data.path to the folder that has them."
        )


def _listed(names: Sequence[str] | set[str] | Mapping[str, object]) -> str:
    shown = [f"'{printable(name)}'" for name in sorted(names)]
    more = f" and {len(shown) - _SHOWN} more" if shown[_SHOWN:] else ""
    return ", ".join(shown[:_SHOWN]) + more
