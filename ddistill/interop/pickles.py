"""An unpickler that admits tensors and plain containers and runs nothing that a file brings.

A pickle is a program: it names functions and calls them. Here a name is looked up in a table of the
types and functions that weights need, written out below; any other name raises an error. No
function of torch or numpy is reachable from a file, and a file can change no object of the table.
"""

import collections
import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import BinaryIO, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from ddistill.errors import ConfigError

T = TypeVar("T")

# torch's dtypes by name, as dtypes of numpy.
DTYPES: dict[str, DTypeLike] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}
STORAGES: dict[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
# Exceptions of unpickling a damaged or forged file.
DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class Call:
    """A function that a pickle may call and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]):
        self._function = function

    def __call__(self, *args: object) -> object:
        """Calls the function."""
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        """Raises `ValueError`; without this method a pickle could set attributes."""
        raise ValueError("a function is given a state")


class NumpyType:
    """A dtype of numbers as numpy pickles it: made from its name, then told its byte order."""

    __slots__ = ("order", "spelling")

    def __init__(self, spelling: object, *flags: object):
        if not isinstance(spelling, str) or not re.fullmatch(r"[<>=|]?[biufc]\d{1,2}", spelling):
            raise ValueError(f"an array of {spelling!r}, not of numbers")
        self.spelling, self.order = spelling.lstrip("<>=|"), "="

    def __setstate__(self, state: object) -> None:
        """Takes the byte order, second in numpy's tuple; the rest is for structured types."""
        if not isinstance(state, tuple) or len(state) < 2:
            raise ValueError(f"a dtype with the state {str(state)[:80]!r}")
        if any(state[2:5]) or state[1] not in tuple("<>=|"):
            raise ValueError(f"a structured array, {state[1:5]!r}")
        self.order = state[1]

    def dtype(self) -> np.dtype:
        """The dtype itself, which the file never holds."""
        return np.dtype(self.spelling).newbyteorder(self.order)  # type: ignore[arg-type]


class PickledArray(np.ndarray):
    """An array as numpy pickles it: made empty, then given its contents, which are checked."""

    def __setstate__(self, state: object) -> None:  # type: ignore[override]
        """Takes numpy's (version, shape, dtype, Fortran order, bytes)."""
        if self.size:  # a second time would free memory that views still read
            raise ValueError("an array is given its contents twice")
        if not isinstance(state, tuple):
            raise ValueError(f"an array with the state {str(state)[:80]!r}")
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, NumpyType) or not isinstance(raw, bytes):
            raise ValueError("an array of objects")
        sizes = _sizes(shape)
        if math.prod(sizes) * kind.dtype().itemsize != len(raw):
            raise ValueError(f"an array of shape {shape!r} in {len(raw)} bytes")
        super().__setstate__((1, sizes, kind.dtype(), bool(fortran), raw))  # type: ignore


def _empty_array(*ignored: object) -> np.ndarray:
    return PickledArray(0, np.uint8)


def _scalar(kind: object, raw: object) -> np.generic:
    if not isinstance(kind, NumpyType) or not isinstance(raw, bytes):
        raise ValueError("a number of no type")
    return np.frombuffer(raw, kind.dtype(), 1)[0]


def _encode(text: object, encoding: object) -> bytes:
    """Bytes as old protocols write them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _sizes(values: object) -> tuple[int, ...]:
    """`values` as integers of 0 or more."""
    if not isinstance(values, tuple | list):
        raise ValueError(f"sizes or strides {str(values)[:80]!r}")
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise ValueError(f"sizes or strides {values!r}")
    return tuple(values)


def rebuild_tensor(
    storage: object, offset: object, size: object, stride: object, *ignored: object
) -> np.ndarray:
    """The view of a flat array that a tensor is.

    Args:
      storage: flat array.
      offset: index of the first element.
      size, stride: of every axis, in elements.
      ignored: whether a gradient is wanted, and hooks.

    Raises:
      ValueError: elements that lie outside of the storage.
    """
    if type(storage) is not np.ndarray or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise ValueError(f"a tensor on a {type(storage).__name__}, not on a storage")
    (start,), shape, steps = _sizes((offset,)), _sizes(size), _sizes(stride)
    if len(shape) != len(steps):
        raise ValueError(f"a tensor of size {shape} with strides {steps}")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    last = start + sum((n - 1) * step for n, step in zip(shape, steps))
    if last >= len(storage):
        raise ValueError(
            f"a tensor of size {shape} with strides {steps} from element {start}, but its storage "
            f"has {len(storage)} elements"
        )
    strides = tuple(step * storage.itemsize for step in steps)
    return np.lib.stride_tricks.as_strided(storage[start:], shape, strides)


def _rebuild_tensor_of(storage: object, *args: object) -> np.ndarray:
    """A tensor on a storage of bytes; `args`: offset, size, stride, gradient, hooks, dtype."""
    kind = args[5]
    if type(storage) is not np.ndarray or not isinstance(kind, str):
        raise ValueError(f"a tensor on a {type(storage).__name__}, not on a storage")
    return rebuild_tensor(storage.view(DTYPES[kind]), *args[:3])


def _default_dict(*factory: object) -> dict[object, object]:
    return {}


def _first(data: T, *ignored: object) -> T:
    return data


_NUMPY = ("numpy.core", "numpy._core")
_BUILTINS = (set, frozenset, list, dict, tuple, complex, int, float, bool, str)

# Names that any file of weights may use, and the objects that stand for them.
PLAIN: dict[str, object] = {
    "collections.OrderedDict": Call(collections.OrderedDict),
    "collections.defaultdict": Call(_default_dict),
    "_codecs.encode": Call(_encode),
    "torch._utils._rebuild_tensor": Call(rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Call(rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": Call(_rebuild_tensor_of),
    "torch._utils._rebuild_parameter": Call(_first),
    "torch._utils._rebuild_parameter_with_state": Call(_first),
    "torch.Size": Call(tuple),
    "torch.device": Call(lambda *where: ":".join(str(w) for w in where)),
    "numpy.ndarray": "ndarray",
    "numpy.dtype": Call(NumpyType),
    **{f"{home}.multiarray._reconstruct": Call(_empty_array) for home in _NUMPY},
    **{f"{home}.multiarray.scalar": Call(_scalar) for home in _NUMPY},
    **{f"{home}.{t.__name__}": Call(t) for home in ("builtins", "__builtin__") for t in _BUILTINS},
    # Types of numbers and of storages are their names: a string cannot be changed.
    **{f"torch.{name}": name for name in DTYPES},
    **{f"torch.{name}": name for name in STORAGES},
    **{f"torch.storage.{name}": name for name in STORAGES},
}


class StrictUnpickler(pickle.Unpickler):
    """Reads one pickle with a table of the names that it may use.

    Args:
      file: where the pickle begins.
      source: the file in errors.
      allowed: "module.name" to the object that stands for it.
      storage: returns a flat array for a dtype, a key, a number of elements and further
        arguments of the file; None where the format has no storages.
    """

    def __init__(
        self,
        file: BinaryIO,
        source: str,
        allowed: Mapping[str, object] = PLAIN,
        storage: Callable[..., np.ndarray] | None = None,
    ):
        super().__init__(file)
        self._source, self._allowed, self._storage = source, allowed, storage

    def find_class(self, module: str, name: str) -> object:
        """What stands for `module.name`.

        Raises:
          ConfigError: it is not in the table.
        """
        wanted = f"{module}.{name}"
        if wanted not in self._allowed:
            raise ConfigError(
                f"{self._source} wants '{wanted}', which is refused and was not run: only tensors "
                "and plain containers are read from pickles. If you trust the file, open it with "
                "the library that wrote it and save its tensors alone (a state_dict)."
            )
        return self._allowed[wanted]

    def persistent_load(self, pid: object) -> np.ndarray:
        """The storage that a tensor lies in.

        Raises:
          ValueError: it is none.
        """
        if self._storage is None or not isinstance(pid, tuple) or pid[:1] != ("storage",):
            raise ValueError(f"an outside reference {str(pid)[:80]!r}")
        kind, key, _, count, *rest = pid[1:]
        if kind not in STORAGES:
            raise ValueError(f"a storage of {str(kind)[:80]!r}")
        return self._storage(np.dtype(DTYPES[STORAGES[kind]]), str(key), _sizes((count,))[0], *rest)


def damaged(source: str, why: object) -> ConfigError:
    """The error for a file that cannot be read to its end."""
    return ConfigError(
        f"{source} is damaged or was cut short: {why}. Compare its size with that of the original "
        "and copy it again."
    )
