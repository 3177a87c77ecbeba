"""Weights in several files, and the index that says which tensor is in which of them.

The index is the JSON file that `save_pretrained` writes beside the shards, for example
diffusion_pytorch_model.safetensors.index.json:

    {"metadata": {"total_size": BYTES}, "weight_map": {TENSOR: FILE, ...}}
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddistill.errors import ConfigError
from ddistill.interop.tensors import read_tensors
from ddistill.typing import JsonRecord

_SHOWN = 3
_AGAIN = "Copy the index and all shards from the same save again."


@dataclass(frozen=True)
class Index:
    """The content of an index.

    Attributes:
      path: the index.
      weight_map: by tensor, the name of its file, which lies beside the index.
      total_size: bytes of all tensors; None where the index does not give it.
    """

    path: Path
    weight_map: Mapping[str, str]
    total_size: int | None

    def shards(self, instead: Sequence[str] = ()) -> tuple[Path, ...]:
        """The files of the index in the order of their names.

        Args:
          instead: names of files of weights that could be read without the index.

        Raises:
          ConfigError: the index names no file, or a file is missing.
        """
        names = sorted(set(self.weight_map.values()))
        missing = [name for name in names if not (self.path.parent / name).is_file()]
        if missing or not names:
            remedy = f", or remove {self.path.name} to read {instead[0]}" if instead else ""
            raise ConfigError(
                f"{self.path} names {len(names)} files of weights, and {len(missing)} of them are "
                f"missing: {', '.join(missing[:5])}. Copy them beside it{remedy}."
            )
        return tuple(self.path.parent / name for name in names)

    def read(self) -> dict[str, np.ndarray]:
        """The tensors of all shards, by name.

        Raises:
          ConfigError: a shard cannot be read, lacks a tensor that the index places in it or holds
            another one, or the tensors do not have the size that the index gives.
        """
        found: dict[str, np.ndarray] = {}
        for shard in self.shards():
            tensors = read_tensors(shard)
            expected = {name for name, file in self.weight_map.items() if file == shard.name}
            self._check(shard, expected, tensors.keys())
            found.update(tensors)
        size = sum(tensor.nbytes for tensor in found.values())
        if self.total_size not in (None, size):
            raise ConfigError(
                f"{self.path}: total_size is {self.total_size} bytes, and the shards hold {size} "
                f"bytes of tensors, as after a conversion to another precision. {_AGAIN}"
            )
        return found

    def _check(self, shard: Path, expected: set[str], there: Collection[str]) -> None:
        missing, extra = sorted(expected - set(there)), sorted(set(there) - expected)
        if missing:
            raise ConfigError(
                f"{shard} lacks {len(missing)} tensors that {self.path.name} places in it: "
                f"{', '.join(map(repr, missing[:_SHOWN]))}. {_AGAIN}"
            )
        if extra:
            place = self.weight_map.get(extra[0], "")
            where = f"places it in {place}" if place else "does not have it"
            raise ConfigError(
                f"{shard} holds {extra[0]!r}, and {self.path.name} {where} ({len(extra)} such "
                f"tensors). {_AGAIN}"
            )


def read_index(path: Path, content: JsonRecord) -> Index:
    """The index that a JSON file holds.

    Args:
      path: the file.
      content: its object.

    Raises:
      ConfigError: there is no table of files that lie beside the index, or total_size is no number
        of bytes.
    """
    table = content.get("weight_map")
    if not isinstance(table, Mapping) or not all(_is_name(name) for name in table.values()):
        raise ConfigError(
            f"{path}: weight_map must say in which file each tensor is, by the names of files that "
            "lie beside the index."
        )
    metadata = content.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    # Some writers give a float.
    whole = isinstance(size, int | float) and not isinstance(size, bool) and size == size // 1
    if size is not None and not (whole and size >= 0):
        raise ConfigError(f"{path}: metadata.total_size is {size!r}; a number of bytes is needed.")
    return Index(path, dict(table), None if size is None else int(size))


def _is_name(value: object) -> bool:
    """Whether a value names a file that lies beside its index."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\")
