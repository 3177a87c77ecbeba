"""Parameters of our networks and the tensors of other libraries, by a table of names and layouts.

A table has one `Leaf` per parameter. Reading is strict: every parameter is found, every tensor is
used once and has the shape that the network has.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from flax import traverse_util

from ddistill.errors import ConfigError, nearest
from ddistill.interop.tensors import full_precision
from ddistill.typing import Params


@dataclass(frozen=True)
class Leaf:
    """One of our parameters and its names in another library.

    Attributes:
      path: in our tree.
      names: the tensors it is made of; several for the joint projection of an attention.
      old: their names in files of earlier versions; () where they have not changed.
      kind: "same", "dense", "conv", "pointwise" (a convolution of size 1, there a linear layer) or
        "linear" (a linear layer, there perhaps a convolution of size 1).
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    old: tuple[str, ...]
    kind: str


Table: TypeAlias = tuple[tuple[Leaf, tuple[int, ...]], ...]


def table_of(shapes: Params, leaf: Callable[[tuple[str, ...]], Leaf]) -> Table:
    """The table of a network.

    Args:
      shapes: its parameters, or their shapes (`jax.eval_shape`).
      leaf: the leaf at a path of them.
    """
    flat = traverse_util.flatten_dict(shapes)
    return tuple((leaf(path), tuple(x.shape)) for path, x in sorted(flat.items()))


_FROM: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "dense": lambda x: x.T,
    "conv": lambda x: x.transpose(2, 3, 1, 0),
    "pointwise": lambda x: x.reshape(x.shape[:2]).T[None, None],
    "linear": lambda x: x.reshape(x.shape[:2]).T,
}
_TO: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "dense": lambda x: x.T,
    "conv": lambda x: x.transpose(3, 2, 0, 1),
    "pointwise": lambda x: x[0, 0].T,
    "linear": lambda x: x.T,
}
# Kinds whose tensors may have two trailing axes of length 1.
_TRAILING = ("pointwise", "linear")


def params_of(table: Table, tensors: Mapping[str, np.ndarray], where: str) -> Params:
    """Our parameters as float32 arrays.

    float16 and bfloat16 become float32, which loses nothing; float64 is rounded.

    Args:
      table: of the network.
      tensors: by their names in the other library.
      where: the file's name, for messages.

    Raises:
      ConfigError: a tensor is missing, left over, of another shape, not of floating point, of 8
        bits, or not finite.
    """
    flat: dict[tuple[str, ...], np.ndarray] = {}
    used: set[str] = set()
    for leaf, shape in table:
        names = leaf.names
        if leaf.old and not any(n in tensors for n in names):
            names = leaf.old
        parts = [_take(name, tensors, where) for name in names]
        used.update(names)
        wanted = np.broadcast_to(np.False_, (*shape[:-1], shape[-1] // len(names)))
        theirs = _TO[leaf.kind](wanted).shape
        allowed = (theirs, (*theirs, 1, 1)) if leaf.kind in _TRAILING else (theirs,)
        for name, part in zip(names, parts):
            if part.shape not in allowed:
                raise ConfigError(
                    f"{where}: {name} has shape {part.shape}; the config.json beside it asks for "
                    f"{theirs}."
                )
        made = np.concatenate([_FROM[leaf.kind](x) for x in parts], axis=-1)
        flat[leaf.path] = np.ascontiguousarray(made, np.float32)
    _check_all_used(tensors, used, where)
    return traverse_util.unflatten_dict(flat)


def _check_all_used(tensors: Mapping[str, np.ndarray], used: Collection[str], where: str) -> None:
    left = sorted(set(tensors) - set(used))
    if left:
        raise ConfigError(
            f"{where}: {len(left)} tensors have no place in the network of config.json: "
            f"{_some(left)}. Are the two files of one model?"
        )


def _take(name: str, tensors: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    if name not in tensors:
        raise ConfigError(
            f"{where}: the tensor {name!r} is missing.{nearest(name, tensors)} "
            "Are weights and config.json of one model?"
        )
    return full_precision(f"{where}: {name}", np.asarray(tensors[name]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def tensors_of(table: Table, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors by name in the other library, from our parameters; the inverse of `params_of`."""
    flat = traverse_util.flatten_dict(params)
    for leaf, _ in table:
        whole = np.asarray(flat[leaf.path], np.float32)
        for name, part in zip(leaf.names, np.split(whole, len(leaf.names), axis=-1)):
            yield name, np.ascontiguousarray(_TO[leaf.kind](part))


def names_and_shapes(table: Table) -> dict[str, tuple[int, ...]]:
    """By name in the other library, the shape of every tensor that `tensors_of` makes."""
    found = {}
    for leaf, shape in table:
        part = np.broadcast_to(np.False_, (*shape[:-1], shape[-1] // len(leaf.names)))
        found.update(dict.fromkeys(leaf.names, _TO[leaf.kind](part).shape))
    return found


def count(table: Table) -> int:
    """The number of parameters."""
    return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in table)
