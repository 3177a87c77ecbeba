"""Tensor files: safetensors, and torch's own format read without running code."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ddistill.errors import ConfigError
from ddistill.interop.torch_files import read_torch
from ddistill.runtime.files import write_bytes


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of a torch file that holds a state dict, by name.

    Raises:
      ConfigError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist or is not a file.")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ConfigError(f"{path} is no whole safetensors file: {error}") from None
    found = read_torch(path)
    if not isinstance(found, Mapping) or not all(
        isinstance(k, str) and isinstance(v, np.ndarray) for k, v in found.items()
    ):
        raise ConfigError(f"{path} holds no state dict, that is tensors by name.")
    return dict(found)


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a .safetensors file; `metadata` is text by name."""
    whole = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    # diffusers and transformers look for the format's name.
    named = {"format": "pt", **{k: str(v) for k, v in (metadata or {}).items()}}
    # The library's own way to write a file makes one that other users cannot read.
    write_bytes(path, save(whole, named))


def file_digest(*paths: Path) -> str:
    """SHA-256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
