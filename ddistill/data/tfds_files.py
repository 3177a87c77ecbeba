"""Finds a prepared TFDS set on disk and says what to do when it is missing or in another format.

Looks at `dataset_info.json` alone, because importing tensorflow_datasets takes seconds.
"""

import difflib
import hashlib
import os
import shlex
from pathlib import Path
from typing import NamedTuple

from ddistill.errors import ConfigError, DataError
from ddistill.runtime.files import DamagedFile, expand, read_object
from ddistill.typing import JsonRecord

INFO = "dataset_info.json"
FORMAT = "array_record"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
DEFAULT_DIR = "~/tensorflow_datasets"


class Prepared(NamedTuple):
    """A prepared set: the folder of one version, and what its `dataset_info.json` says."""

    folder: Path
    info: JsonRecord

    @property
    def title(self) -> str:
        """Name, config and version, as in "cifar10/3.0.2"."""
        parts = (self.info.get("name"), self.info.get("configName"), self.info.get("version"))
        return "/".join(str(p) for p in parts if p)

    @property
    def format(self) -> str:
        """The file format that the set is stored in."""
        return self.info.get("fileFormat") or "tfrecord"

    @property
    def command(self) -> str:
        """The command line that makes these files anew."""
        if self.folder.name == FORMAT:
            return prepare_command(str(self.folder.parent), "")
        depth = 3 if self.info.get("configName") else 2
        root = self.folder.parents[min(depth, len(self.folder.parents)) - 1]
        return prepare_command(str(self.info["name"]), str(root))

    def shard(self, split: JsonRecord, index: int, file_format: str) -> Path:
        """File of shard `index` of an entry of `info["splits"]`."""
        template = split.get("filepathTemplate") or TEMPLATE
        names = {
            "DATASET": self.info["name"],
            "SPLIT": split["name"],
            "FILEFORMAT": file_format,
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{len(split['shardLengths']):05d}",
        }
        names["SHARD_X_OF_Y"] = f"{names['SHARD_INDEX']}-of-{names['NUM_SHARDS']}"
        return self.folder / template.format(**names)

    @property
    def changed(self) -> str:
        """SHA-256 of the sizes and times of all files of this copy, which is not its content."""
        text = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            status = path.stat()
            times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
            text.update(f"{path.name} {status.st_size} {times}\n".encode())
        return text.hexdigest()

    @property
    def splits(self) -> dict[str, int]:
        """Number of examples of every split."""
        return {
            s["name"]: sum(int(n) for n in s.get("shardLengths", ()))
            for s in self.info.get("splits", ())
        }


def data_folder(data_dir: str) -> Path:
    """Where prepared sets lie: `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    try:
        return expand(data_dir or os.environ.get("TFDS_DATA_DIR") or DEFAULT_DIR)
    except ConfigError as error:
        raise ConfigError(f"{error} data.data_dir and $TFDS_DATA_DIR name the folder.") from None


def find(path: str, data_dir: str) -> Prepared:
    """The prepared set of a name such as "cifar10", "svhn_cropped:3.0.0" or "name/config".

    Args:
      path: that name, or the folder of a prepared set.
      data_dir: see `data_folder`.

    Raises:
      ConfigError: no path is given.
      DataError: it is not there, or it has several configs to choose from.
    """
    if not path:
        raise ConfigError(
            "data.path is missing: set --config.data.path to the name of a TFDS set, such as "
            "cifar10, or to the folder of a prepared one."
        )
    root = data_folder(data_dir)
    name, _, version = path.partition(":")
    folder = expand(path)
    versions = _versions(folder) or _versions(root / name)
    if version:
        versions = [v for v in versions if v.name == version]
    if not versions:
        raise DataError(_missing(path, root))
    configs = sorted({v.parent for v in versions})
    if len(configs) > 1:
        choices = ", ".join(f"{name}/{c.name}" for c in configs)
        raise DataError(f"TFDS set '{path}' has several configs: set data.path to {choices}.")
    newest = max(versions, key=lambda v: _version_key(v.name))
    return _converted(Prepared(newest.absolute(), read_info(newest)))


def read_info(folder: Path) -> JsonRecord:
    """The content of `dataset_info.json`.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return read_object(folder / INFO)
    except (OSError, DamagedFile) as error:
        raise DataError(f"{folder / INFO} cannot be read: {error}.") from error


def check_format(found: Prepared) -> None:
    """Raises `DataError` with the command to run unless the set is there as array_record."""
    if found.format != FORMAT:
        raise DataError(
            f"TFDS set {found.title} in {found.folder} is stored as {found.format}, and only "
            f"{FORMAT} is read here. Convert it once (nothing is downloaded): "
            f"{prepare_command(str(found.folder), '')}"
        )


def check_shards(found: Prepared, file_format: str) -> None:
    """Raises `DataError` naming the first file of the set that is missing."""
    for split in found.info.get("splits", ()):
        for index in range(len(split.get("shardLengths", ()))):
            path = found.shard(split, index, file_format)
            if not path.exists():
                raise DataError(
                    f"{path} is missing. Delete {found.folder} and prepare it again: "
                    f"{found.command}"
                )


def prepare_command(name: str, data_dir: str) -> str:
    """The command line that prepares a set."""
    words = ["python", "-m", "ddistill.data.prepare", name]
    if data_dir:
        words.append(f"--data_dir={data_dir}")
    return shlex.join(words)


def _versions(folder: Path) -> list[Path]:
    """Folders with a `dataset_info.json`, at most two levels (config, version) below `folder`."""
    patterns = (INFO, f"*/{INFO}", f"*/*/{INFO}")
    found = [p.parent for pattern in patterns for p in folder.glob(pattern)]
    return [p for p in found if p.name != FORMAT and not p.name.startswith("incomplete.")]


def _converted(found: Prepared) -> Prepared:
    """The array_record copy inside the folder of a set in another format, where there is one."""
    copy = found.folder / FORMAT
    if found.format == FORMAT or not (copy / INFO).is_file():
        return found
    return Prepared(copy, read_info(copy))


def _version_key(name: str) -> tuple[int, ...]:
    return tuple(int(n) if n.isdigit() else -1 for n in name.split("."))


def _missing(path: str, root: Path) -> str:
    there = sorted(p.name for p in root.iterdir() if _versions(p)) if root.is_dir() else []
    close = difflib.get_close_matches(path, there, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    listed = f" Prepared there: {', '.join(there[:10])}." if there else ""
    shown = "" if root == Path(os.path.expanduser(DEFAULT_DIR)) else str(root)
    return (
        f"TFDS set '{path}' is not prepared in {root}.{hint}{listed} Prepare it once, with the "
        f"extra 'prepare' (pip install -e '.[prepare]'): {prepare_command(path, shown)}"
    )
