"""Files that torch.save wrote, as numpy arrays in plain containers, without torch.

Formats: the zip archive of torch >= 1.6 (`NAME/data.pkl`, and one member `NAME/data/KEY` for every
storage) and the older one (five pickles, then all storages in a row).
"""

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddistill.errors import ConfigError
from ddistill.interop.file_kinds import why_unusable
from ddistill.interop.pickles import DAMAGE, StrictUnpickler, damaged

ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_torch(path: Path) -> object:
    """The object that torch.save wrote to `path` (.pt, .pth, .bin), with arrays for tensors.

    No code of the file is run. Tensors that share a storage are views of one array; do not write to
    them. bfloat16 is `ml_dtypes.bfloat16`; types of numbers and devices come as their names, and
    types of containers that torch or Python have subclassed as plain ones.

    Args:
      path: the file.

    Raises:
      ConfigError: the file is missing, damaged, not torch's, or names anything that is not a tensor
        or a plain container; the message gives the name.
    """
    return parse_torch(read_bytes(Path(path)), str(path))


def parse_torch(data: bytes, source: str) -> object:
    """The object in the bytes of a file; see `read_torch`.

    Args:
      data: the bytes.
      source: the file in errors.
    """
    return _read_zip(data, source) if data.startswith(ZIP) else _read_legacy(data, source)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[io.BufferedReader]:
    """The file, opened to be read.

    Raises:
      ConfigError: there is no such file, it cannot be read, or it is empty, a git-lfs pointer or a
        web page.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist or is not a file"
        raise ConfigError(f"{path} {what}; a file of weights is needed.")
    try:
        if reason := why_unusable(path):
            raise ConfigError(f"{path} {reason}.")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error


def read_bytes(path: Path) -> bytes:
    """The contents of a file.

    Raises:
      ConfigError: there is no such file, or it cannot be read.
    """
    with open_file(path) as file:
        return file.read()


def _read_zip(data: bytes, source: str) -> object:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _ZipReader(archive, source, len(data)).read()
    except ConfigError:
        raise
    except (*DAMAGE, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise damaged(source, error) from error


class _ZipReader:
    """Reads the object of one archive and, once each, the storages that it names."""

    def __init__(self, archive: zipfile.ZipFile, source: str, size: int):
        self._archive, self._source = archive, source
        self._members = {info.filename: info for info in archive.infolist()}
        self._check_kind()
        # torch compresses nothing. Members larger than the file are a zip bomb.
        if any(m.compress_type != zipfile.ZIP_STORED for m in self._members.values()):
            raise ConfigError(f"{source} is a compressed zip archive, which torch does not write.")
        if sum(m.file_size for m in self._members.values()) > size:
            raise damaged(source, f"it has {size} bytes, its members claim more")
        self._storages: dict[str, np.ndarray] = {}
        roots = [
            n.removesuffix("data.pkl") for n in self._members if n.split("/")[1:] == ["data.pkl"]
        ]
        if len(roots) != 1:
            raise ConfigError(f"{source} is a zip archive, but not one that torch.save wrote.")
        self._root = roots[0]

    def _check_kind(self) -> None:
        """Names the other archives that weights are often taken for."""
        inner = {name.partition("/")[2] for name in self._members}
        if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
            raise ConfigError(
                f"{self._source} is a TorchScript program, not weights. Save its state_dict: "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
            )
        if self._members and all(name.endswith(".npy") for name in self._members):
            names = ", ".join(name.removesuffix(".npy") for name in list(self._members)[:5])
            raise ConfigError(
                f"{self._source} is an npz file with the arrays {names}, not weights that "
                "torch.save wrote."
            )

    def read(self) -> object:
        """The object."""
        if self._text("byteorder") not in ("", "little"):
            raise ConfigError(f"{self._source} was written on a big-endian machine; not supported.")
        pickled = io.BytesIO(self._archive.read(f"{self._root}data.pkl"))
        return StrictUnpickler(pickled, self._source, storage=self._storage).load()

    def _text(self, name: str) -> str:
        name = f"{self._root}{name}"
        return self._archive.read(name).decode().strip() if name in self._members else ""

    def _storage(self, dtype: np.dtype, key: str, count: int, *ignored: object) -> np.ndarray:
        if key not in self._storages:
            name = f"{self._root}data/{key}"
            if name not in self._members:
                raise ValueError(f"the storage '{name}' is missing")
            self._storages[key] = np.frombuffer(self._archive.read(name), np.uint8)
        raw = self._storages[key]
        if len(raw) != count * dtype.itemsize:
            raise ValueError(f"storage '{key}' has {len(raw)} bytes for {count} of {dtype}")
        return raw.view(dtype)


def _read_legacy(data: bytes, source: str) -> object:
    file = io.BytesIO(data)
    try:
        magic = StrictUnpickler(file, source).load()
    except ConfigError:
        raise
    except DAMAGE:
        magic = None
    if not isinstance(magic, int) or magic != _LEGACY_MAGIC:
        raise ConfigError(
            f"{source} is not a file that torch.save wrote; it begins with {data[:16]!r}."
        )
    try:
        return _LegacyReader(file, source, len(data)).read()
    except DAMAGE as error:
        if isinstance(error, ConfigError):
            raise
        raise damaged(source, error) from error


class _LegacyReader:
    """Reads the object, then fills the storages that it named, which come after it."""

    def __init__(self, file: io.BytesIO, source: str, size: int):
        self._file, self._source, self._left = file, source, size
        self._storages: dict[str, np.ndarray] = {}

    def read(self) -> object:
        """The object."""
        protocol, machine = self._next(), self._next()
        if protocol != _LEGACY_PROTOCOL or not isinstance(machine, dict):
            raise ValueError(f"protocol {protocol!r}")
        if not machine.get("little_endian", True):
            raise ConfigError(f"{self._source} was written on a big-endian machine; not supported.")
        found = StrictUnpickler(self._file, self._source, storage=self._storage).load()
        keys = self._next()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("no list of storages")
        if sorted(keys) != sorted(self._storages):
            raise ValueError(f"{len(self._storages)} storages are used, {len(keys)} are listed")
        for key in keys:
            self._fill(key)
        return found

    def _next(self) -> object:
        return StrictUnpickler(self._file, self._source).load()

    def _storage(
        self, dtype: np.dtype, key: str, count: int, view: object = None, *ignored: object
    ) -> np.ndarray:
        if key not in self._storages:
            self._left -= count * dtype.itemsize
            if self._left < 0:
                raise ValueError("its storages are larger than the file")
            self._storages[key] = np.zeros(count, dtype)
        whole = self._storages[key]
        if whole.dtype != dtype or len(whole) != count:
            raise ValueError(f"storage '{key}' is described in two ways")
        if view is None:
            return whole
        if not isinstance(view, tuple) or len(view) != 3:
            raise ValueError(f"a view {str(view)[:80]!r} of a storage")
        _, start, length = view
        if not 0 <= start <= start + length <= count:
            raise ValueError(f"a view {start}:{start + length} of a storage of {count} elements")
        return whole[start : start + length]

    def _fill(self, key: str) -> None:
        """Reads the elements of a storage: their number in 8 bytes, then themselves."""
        array = self._storages[key]
        count = int.from_bytes(self._file.read(8), "little")
        raw = self._file.read(array.nbytes)
        if count != len(array) or len(raw) != array.nbytes:
            raise ValueError(f"storage '{key}' ends early")
        array[:] = np.frombuffer(raw, array.dtype)
