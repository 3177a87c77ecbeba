"""Which image files a folder holds, of which classes, and which of them are for testing."""

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ddistill.data.decode import EXTENSIONS
from ddistill.errors import ConfigError, DataError

TRAIN = "train"
TESTS = ("test", "val", "valid", "validation")


class File(NamedTuple):
    """One image file: path relative to the folder, with "/", its bytes and time of change (ns)."""

    path: str
    size: int
    changed: int

    @property
    def label(self) -> str:
        """Name of the top sub-folder, which is the class; "" for a file directly in the folder."""
        return self.path.partition("/")[0] if "/" in self.path else ""


class Listing(NamedTuple):
    """Files sorted by path, the folder that their paths start from, and the names of classes."""

    root: Path
    files: list[File]
    classes: tuple[str, ...]

    def labels(self) -> list[int]:
        """Number of the class of every file."""
        numbers = {name: i for i, name in enumerate(self.classes)}
        return [numbers.get(f.label, 0) for f in self.files]


def scan(root: Path) -> list[File]:
    """The image files in a folder and below it, sorted by path; hidden ones are left out.

    Raises:
      DataError: the folder is missing, is no folder, or holds no images.
    """
    _check_folder(root)
    others: Counter = Counter()
    files = sorted(_below(root, "", others, ()))
    if not files:
        kinds = ", ".join(f"{n} {kind}" for kind, n in others.most_common(5))
        holds = f"no images, only other files ({kinds})" if others else "no files"
        raise DataError(
            f"data.path={root} holds {holds}. Images that are read: {', '.join(EXTENSIONS)}."
        )
    return files


def list_split(root: Path, found: list[File], split: str, test_fraction: float) -> Listing:
    """The files of one split.

    Sub-folders `train` and `test` (or `val`, `valid`, `validation`) are the splits where nothing
    but them holds images. Otherwise, or where there is only `train`, a file is for testing when the
    hash of its path falls into the first `test_fraction` of all hashes: files that are added later
    move no other file.

    Args:
      root: the folder.
      found: what `scan` finds there.
      split: "train" or "test".
      test_fraction: share of files for testing, in [0, 1).

    Raises:
      DataError: images beside class folders, a split without images, or a class that is only in
        the test split.
    """
    folders = {f.label for f in found}
    if not folders <= {TRAIN, *TESTS}:
        return _by_hash(root, found, split, test_fraction)
    if TRAIN not in folders:
        names = " and ".join(sorted(folders))
        raise DataError(f"{root} has images in {names} but none in '{TRAIN}'.")
    train = _inside(root, found, TRAIN)
    tests = [name for name in TESTS if name in folders]
    if not tests:
        return _by_hash(train.root, train.files, split, test_fraction)
    if len(tests) > 1 and TESTS[0] not in tests:
        raise DataError(f"{root} has {' and '.join(tests)}; rename the one to test on to 'test'.")
    if split == TRAIN:
        return train
    test = _inside(root, found, tests[0])
    if {f.label for f in train.files} == {f.label for f in test.files} == {""}:
        return Listing(test.root, test.files, train.classes)
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise DataError(
            f"{test.root} has the class '{unknown[0]}', which {train.root} has not. "
            f"Classes there: {', '.join(train.classes[:10])}."
        )
    return Listing(test.root, test.files, train.classes)


def digest(files: Sequence[File], times: bool = False) -> str:
    """SHA-256 of the paths and sizes of files, with `times` of when they changed too."""
    text = hashlib.sha256()
    for f in files:
        line = f"{f.path}\0{f.size}\0{f.changed if times else ''}\n"
        text.update(line.encode("utf-8", "surrogateescape"))
    return text.hexdigest()


def is_test(path: str, test_fraction: float) -> bool:
    """Whether the hash of a path falls into the first `test_fraction` of all hashes."""
    raw = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(raw[:8], "big") < test_fraction * 2**64


def check_fraction(test_fraction: float) -> None:
    """Raises `ConfigError` unless the share of test images is in [0, 1)."""
    if not 0 <= test_fraction < 1:
        raise ConfigError(
            f"data.test_fraction={test_fraction} cannot be: at least 0 and less than 1."
        )


def empty_split(where: object, split: str, total: int, test_fraction: float) -> DataError:
    """The error of a split by hash that leaves one side without images."""
    return DataError(
        f"data.test_fraction={test_fraction} leaves no {split} images of the {total} in {where}. "
        f"{'Lower' if split == TRAIN else 'Raise'} it, or give the data a test split of their own."
    )


def _by_hash(root: Path, files: list[File], split: str, test_fraction: float) -> Listing:
    classes = _classes(root, files)
    wanted = [f for f in files if is_test(f.path, test_fraction) == (split != TRAIN)]
    if not wanted:
        raise empty_split(root, split, len(files), test_fraction)
    return Listing(root, wanted, classes)


def _inside(root: Path, found: list[File], name: str) -> Listing:
    """The files of one sub-folder, with paths that start there."""
    start = len(name) + 1
    files = [f._replace(path=f.path[start:]) for f in found if f.label == name]
    return Listing(root / name, files, _classes(root / name, files))


def _classes(root: Path, files: list[File]) -> tuple[str, ...]:
    """Names of the classes: the sub-folders, or the folder itself when it has none."""
    labels = {f.label for f in files}
    if labels == {""}:
        return (root.resolve().name,)
    if "" in labels:
        loose = next(f for f in files if not f.label)
        inside = next(f for f in files if f.label)
        raise DataError(
            f"{root} holds images ({loose.path}) and also folders of images ({inside.path}). "
            "Either every image lies in the folder of its class, or all lie directly in "
            f"{root.name}: move the images, or the folder '{inside.label}'."
        )
    return tuple(sorted(labels))


def _below(folder: Path, prefix: str, others: Counter, parents: tuple[str, ...]) -> Iterator[File]:
    """Images anywhere below a folder; a link back to a parent is not followed."""
    real = os.path.realpath(folder)
    if real in parents:
        return
    for entry in _entries(folder):
        path = prefix + entry.name
        if entry.is_dir():
            yield from _below(Path(entry.path), f"{path}/", others, (*parents, real))
        elif entry.name.lower().endswith(EXTENSIONS):
            yield _file(entry, path)
        else:
            others[Path(entry.name).suffix.lower() or "without suffix"] += 1


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return [e for e in found if not e.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from error


def _file(entry: os.DirEntry, path: str) -> File:
    try:
        status = entry.stat()
    except OSError:
        # A dangling link; decoding it names it, or skips it.
        return File(path, 0, 0)
    return File(path, status.st_size, status.st_mtime_ns)


def _check_folder(root: Path) -> None:
    advice = "data.path is a folder of images, with a sub-folder for each class if there are any."
    if root.is_dir():
        return
    if root.exists():
        raise DataError(f"data.path={root} is a file. {advice} If it is an archive, unpack it.")
    parent = root.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(root.name, names, n=1)
    hint = f" Did you mean '{parent / close[0]}'?" if close else ""
    where = "" if root.is_absolute() else f" in {Path.cwd()}"
    raise DataError(
        f"data.path={root} does not exist{where}.{hint} {advice} "
        "Put them there, or set --config.data.path=FOLDER."
    )
