"""Tensor files: safetensors, and torch's own format read without running code."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from ddistill.errors import ConfigError
from ddistill.interop.torch_files import parse_torch, read_bytes
from ddistill.runtime.files import write_bytes

# The dtypes of safetensors by name.
_DTYPES: dict[str, DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "C64": np.complex64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_FULL = ("float32", "float16", "bfloat16", "float64")
# Keys under which trainers put a state dict beside other things.
_NESTED = ("state_dict", "model", "model_state_dict", "module", "ema", "params", "net")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, or of a torch file that holds a state dict, by name.

    The format is detected from the content, because weights are often renamed.

    Raises:
      ConfigError: the file is missing, damaged, or holds something else.
    """
    data = read_bytes(path)
    torch = data.startswith((b"PK\x03\x04", b"\x80"))
    if data[8:9] == b"{" or (path.suffix == ".safetensors" and not torch):
        return _of_safetensors(data, path)
    return _state_dict(parse_torch(data, str(path)), path)


def _of_safetensors(data: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        parts = deserialize(data)
    except SafetensorError as error:
        raise ConfigError(
            f"{path} is no whole safetensors file: {error}. Compare its size with that of the "
            "original and copy it again."
        ) from None
    return {name: _array(name, part, path) for name, part in parts}


def _array(name: str, part: Mapping[str, Any], path: Path) -> np.ndarray:
    kind, shape, raw = part["dtype"], tuple(part["shape"]), part["data"]
    dtype = np.dtype(_DTYPES[kind]) if kind in _DTYPES else None
    if dtype is None or len(raw) != math.prod(shape) * dtype.itemsize:
        raise ConfigError(
            f"{path}: {name!r} is of the type {kind}, which cannot be read. Save it as F32, F16 "
            "or BF16."
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _state_dict(found: object, path: Path) -> dict[str, np.ndarray]:
    """The object of a torch file, if it is a dictionary of tensors."""
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"{path} holds a {type(found).__name__}, no state dict, that is tensors by name."
        )
    others = {k: v for k, v in found.items() if not _is_tensor(k, v)}
    if not others:
        return dict(found)
    nested = sorted((k for k, v in others.items() if _holds_tensors(v)), key=_order)
    if nested:
        listed = ", ".join(repr(k) for k in nested)
        raise ConfigError(
            f"{path} holds no state dict, that is tensors by name, but a dictionary with the keys "
            f"{_listed(found)}; there are tensors under {listed}. Save one of them alone: "
            f"torch.save(torch.load(FILE)[{nested[0]!r}], NEW_FILE)."
        )
    key, value = next(iter(others.items()))
    raise ConfigError(
        f"{path} holds no state dict, that is tensors by name: {key!r} is a "
        f"{type(value).__name__}. Its keys: {_listed(found)}."
    )


def _is_tensor(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, np.ndarray)


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(_is_tensor(k, v) for k, v in value.items())


def _order(key: object) -> tuple[int, str]:
    return (_NESTED.index(key) if key in _NESTED else len(_NESTED), str(key))


def _listed(found: Mapping) -> str:
    names = [repr(k) for k in found]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def full_precision(name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor of weights as float32; float64 is rounded, the others lose nothing.

    Raises:
      ConfigError: integers, or floats of 8 bits, or values beyond float32.
    """
    kind = tensor.dtype.name
    if kind not in _FULL:
        more = ""
        if kind.startswith("float8"):
            more = " Floats of 8 bits have lost most digits; take the file of 16 or 32 bits."
        raise ConfigError(
            f"{name} is {kind}; float32, float16 or bfloat16 is needed, or float64.{more}"
        )
    with np.errstate(over="ignore"):
        value = np.asarray(tensor, np.float32)
    if not np.isfinite(value).all():
        raise ConfigError(f"{name} holds values that are not finite.")
    return value


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, object] | None = None
) -> None:
    """Writes a .safetensors file; `metadata` is text by name."""
    # The library's own way to write a file makes one that other users cannot read.
    write_bytes(path, as_safetensors(tensors, metadata))


def as_safetensors(
    tensors: Mapping[str, np.ndarray], metadata: Mapping[str, object] | None = None
) -> bytes:
    """The content of a .safetensors file; `metadata` is text by name."""
    whole = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    # diffusers and transformers look for the format's name.
    named = {"format": "pt", **{k: str(v) for k, v in (metadata or {}).items()}}
    return save(whole, named)


def file_digest(*paths: Path) -> str:
    """SHA-256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
