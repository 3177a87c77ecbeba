"""One shard of a set: named arrays with rows, in a safetensors file that is read in place."""

import hashlib
import json
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np
from numpy.typing import DTypeLike
from safetensors.numpy import save

from ddistill.errors import DataError
from ddistill.runtime.files import write_bytes
from ddistill.typing import AnyArray

# The dtypes that a set may hold, by their names in the format.
_DTYPES: Mapping[str, DTypeLike] = {
    "F16": np.float16,
    "F32": np.float32,
    "U8": np.uint8,
    "U16": np.uint16,
    "I32": np.int32,
    "I64": np.int64,
}
_LARGEST_HEADER = 100 << 20
_METADATA = "ddistill"
CAPTION, OFFSETS = "caption", "caption_offsets"


class DamagedShard(DataError):
    """A shard that is cut off, changed or no safetensors file; the message names it."""


@dataclass(frozen=True)
class Shard:
    """An open shard.

    Attributes:
      path: the file.
      arrays: by name, views of the mapped file, not to be written.
      metadata: texts by name.
    """

    path: Path
    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]

    @property
    def content(self) -> str:
        """SHA-256 of names, shapes and values of the arrays; reads all of them."""
        return content_digest(self.arrays)


def write_shard(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a shard under a temporary name and renames it; it is whole or not there.

    The metadata gets the digest of the content, so that a changed value is found.

    Raises:
      OSError: it cannot be written.
    """
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # One text: the library writes several in a random order, and equal sets are to be equal files.
    text = json.dumps({**metadata, "content": content_digest(whole)}, sort_keys=True)
    write_bytes(path, save(whole, {_METADATA: text}))


def content_digest(arrays: Mapping[str, AnyArray]) -> str:
    """SHA-256 of names, dtypes, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def open_shard(path: Path) -> Shard:
    """Maps a shard into memory; values are read when they are used.

    Raises:
      DamagedShard: it is missing, cut off, or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DamagedShard(f"{path} is missing.") from None
    except ValueError:  # an empty file cannot be mapped
        raise DamagedShard(f"{path} is empty.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return _parse(path, mapped)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedShard):
            raise
        raise DamagedShard(f"{path} is no safetensors file of a set of latents.") from None


def _parse(path: Path, mapped: mmap.mmap) -> Shard:
    length = int.from_bytes(mapped[:8], "little")
    if not 2 <= length <= _LARGEST_HEADER:
        raise DamagedShard(f"{path} is no safetensors file.")
    start = 8 + length
    if start > len(mapped):
        raise DamagedShard(f"{path} is cut off inside of its header.")
    header = json.loads(mapped[8:start])
    metadata = json.loads(header.pop("__metadata__", {}).get(_METADATA, "{}"))
    end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if len(mapped) != end:
        less = "cut off" if len(mapped) < end else "too long"
        raise DamagedShard(f"{path} is {less}: it has {len(mapped)} bytes instead of {end}.")
    view = memoryview(mapped)
    arrays = {name: _array(view[start:], entry) for name, entry in header.items()}
    return Shard(path, arrays, {str(key): str(value) for key, value in metadata.items()})


def _array(data: memoryview, entry: Mapping) -> np.ndarray:
    first, last = entry["data_offsets"]
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if first < 0 or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError("offsets and shape differ")
    if first == last:
        return np.empty(shape, dtype)
    return np.frombuffer(data[first:last], dtype).reshape(shape)


class Rows:
    """The rows of an array that several shards hold one after the other, read on use."""

    def __init__(self, parts: Sequence[np.ndarray]):
        """Reads nothing.

        Args:
          parts: at least one array, of the same shape but for their first axis.
        """
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Rows in the order of `indices`, which may be negative.

        Raises:
          IndexError: an index is outside of the rows.
        """
        numbers = np.asarray(indices, np.int64)
        if numbers.size and (numbers.min() < -len(self) or numbers.max() >= len(self)):
            raise IndexError(f"index outside of {len(self)} rows")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        out = np.empty((*numbers.shape, *self.shape[1:]), self.dtype)
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        for owner in np.unique(owners):
            own = owners == owner
            out[own] = self._parts[owner][numbers[own] - self._starts[owner]]
        return out

    def all(self) -> np.ndarray:
        """All rows in memory."""
        return np.concatenate(self._parts)


class Texts(Sequence[str]):
    """The captions of several shards, decoded on use."""

    def __init__(self, shards: Sequence[Shard]):
        """Reads nothing.

        Args:
          shards: with the arrays `caption`, bytes of UTF-8, and `caption_offsets` [n + 1].
        """
        self._parts = [(shard.arrays[CAPTION], shard.arrays[OFFSETS]) for shard in shards]
        self._starts = np.cumsum([0, *(len(offsets) - 1 for _, offsets in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        """The caption of a row, or of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        content, offsets = self._parts[part]
        place = number - int(self._starts[part])
        return content[offsets[place] : offsets[place + 1]].tobytes().decode("utf-8", "replace")


def pack_texts(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Texts as the arrays that `Texts` reads."""
    raw = [text.encode("utf-8") for text in texts]
    offsets = np.cumsum([0, *map(len, raw)], dtype=np.int64)
    return {CAPTION: np.frombuffer(b"".join(raw), np.uint8), OFFSETS: offsets}
