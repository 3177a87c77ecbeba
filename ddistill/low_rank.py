"""Low-rank adaptation: a frozen network, and a product of two small matrices added to its kernels.

LoRA (arXiv 2106.09685). An adapted kernel is `base + a b`: a kernel `[..., C_in, C_out]` has the
factors a `[..., C_in, r]` and b `[r, C_out]`, so that the two are layers themselves: `a` is a layer
of the same kind with r channels, `b` a matrix product over channels. Nothing here depends on the
network; kernels are chosen by the paths of their layers. There is no scale beside the factors: in
the terms of PEFT, alpha is the rank.

The base has no student axis. K students are K pairs of factors on one copy of the base, and
`jax.vmap` over the factors leaves the base's layers plain layers of K times the batch.
"""

import contextlib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array

from ddistill.errors import ConfigError, nearest
from ddistill.settings import LowRankSettings
from ddistill.typing import Params, RandomKey

# Of a layer, from the outermost module.
Path: TypeAlias = tuple[str, ...]
KERNEL, A, B = "kernel", "a", "b"
_USUAL = LowRankSettings().targets


def adapted_layers(params: Params, targets: Sequence[str]) -> dict[Path, tuple[int, ...]]:
    """The kernels that are adapted: by the path of the layer, the shape.

    Args:
      params: the network's parameters, or their shapes.
      targets: patterns of paths with "*" for any text, as "down_*" or "*/attn1/q".

    Raises:
      ConfigError: a pattern that no layer with a kernel of two axes or more fits, unless it is one
        of the default patterns (a U-Net may have no middle) and another one fits.
    """
    flat = traverse_util.flatten_dict(params)
    known = {p[:-1]: x.shape for p, x in flat.items() if p[-1] == KERNEL and len(x.shape) >= 2}
    names = {"/".join(path): path for path in known}
    found: dict[Path, tuple[int, ...]] = {}
    for pattern in targets:
        fitting = [names[n] for n in names if fnmatch.fnmatchcase(n, pattern)]
        if not fitting and not (pattern in _USUAL and len(targets) > 1):
            raise ConfigError(
                f"low_rank.targets: no layer of the network fits {pattern!r}."
                f"{nearest(pattern, names)} Layers are named as {', '.join(sorted(names)[:3])}."
            )
        found |= {path: known[path] for path in fitting}
    if not found:
        raise ConfigError(
            f"low_rank.targets={tuple(targets)}: no layer of the network fits. Layers are named as "
            f"{', '.join(sorted(names)[:3])}."
        )
    return dict(sorted(found.items()))


def draw_factors(key: RandomKey, params: Params, rank: int, targets: Sequence[str]) -> Params:
    """Factors that change nothing: `a` uniform in +- 1 / sqrt(fan-in), as PEFT's, and `b` zero.

    Args:
      key: random key.
      params: the network's parameters, or their shapes.
      rank: r.
      targets: as in `adapted_layers`; errors, too.
    """
    flat: dict[Path, Array] = {}
    layers = adapted_layers(params, targets)
    for (path, shape), own in zip(layers.items(), jax.random.split(key, len(layers))):
        bound = float(np.prod(shape[:-1])) ** -0.5
        flat[(*path, A)] = jax.random.uniform(own, (*shape[:-1], rank), minval=-bound, maxval=bound)
        flat[(*path, B)] = jnp.zeros((rank, shape[-1]))
    return traverse_util.unflatten_dict(flat)  # type: ignore[no-any-return]


def merged(base: Params, factors: Params) -> Params:
    """The network's parameters with `a b` added to every adapted kernel.

    Where the factors are of K students, `[K, ...]`, so are the parameters.
    """
    flat, pairs = dict(traverse_util.flatten_dict(base)), _pairs(factors)
    students = {len(b) for _, b in pairs.values() if b.ndim == 3}
    if students:
        (count,) = students
        flat = {path: jnp.broadcast_to(x, (count, *x.shape)) for path, x in flat.items()}
    for path, (a, b) in pairs.items():
        change = jnp.einsum(
            "k...r,kro->k...o" if students else "...r,ro->...o", a, b, precision="highest"
        )
        flat[(*path, KERNEL)] = flat[(*path, KERNEL)] + change
    return traverse_util.unflatten_dict(flat)  # type: ignore[no-any-return]


def _pairs(factors: Params) -> dict[Path, tuple[Array, Array]]:
    """By the path of the layer, the two factors of its kernel."""
    flat = traverse_util.flatten_dict(factors)
    return {path[:-1]: (x, flat[(*path[:-1], B)]) for path, x in flat.items() if path[-1] == A}


# -------------------------------------------------------------------------------------- layers


@contextlib.contextmanager
def adapting(base: Params, factors: Params) -> Iterator[None]:
    """Within it, `module.apply({"params": base}, ...)` computes with `merged(base, factors)`.

    An adapted layer computes `layer(x) + (x a) b`: no kernel is put together, no gradient of a
    whole kernel is computed, and students that share the base share its layers.

    Raises:
      ConfigError: in the call, where an adapted layer is not a module that has `features` output
        channels, a kernel and perhaps a bias, and is called with its input alone.
    """
    pairs, known = _pairs(factors), traverse_util.flatten_dict(base)

    def intercept(call: Any, args: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        found = call(*args, **options)
        pair = pairs.get(layer.path) if context.method_name == "__call__" else None
        if pair is None:
            return found
        a, b = pair
        channels = b.shape[-1]
        if getattr(layer, "features", None) != channels or len(args) != 1 or options:
            raise ConfigError(
                f"low_rank.targets: '{'/'.join(layer.path)}' is a {type(layer).__name__}, which is "
                "not a layer with `features` output channels, called with its input alone. Choose "
                "targets without it."
            )
        own = {KERNEL: a}
        if (*layer.path, "bias") in known:
            own["bias"] = jnp.zeros(a.shape[-1:])
        small = layer.clone(features=a.shape[-1], parent=None, name=None)
        inner: Array = small.apply({"params": own}, *args)  # type: ignore[assignment]
        return found + inner @ b.astype(inner.dtype)

    with nn.intercept_methods(intercept):
        yield


# ------------------------------------------------------------------------------------ extraction


@dataclass(frozen=True)
class Extracted:
    """Factors of the difference of two networks.

    Attributes:
      factors: see the module; a layer's rank is at most its smaller side.
      left_out: share of the squared difference that they lack, in [0, 1]: smaller singular values,
        and parameters that are no kernels.
      ranks: by the path of the layer, the rank.
    """

    factors: Params
    left_out: float
    ranks: dict[Path, int]


def extract(base: Params, params: Params, rank: int) -> Extracted:
    """The best factors of a rank, layer by layer, by singular value decomposition.

    Kernels that are equal in both networks have no factors.

    Args:
      base, params: parameters of one network in the host's memory.
      rank: the highest rank.

    Raises:
      ConfigError: the networks differ, or are equal.
    """
    theirs, ours = (traverse_util.flatten_dict(tree) for tree in (base, params))
    _check_same(theirs, ours)
    flat: dict[Path, np.ndarray] = {}
    ranks: dict[Path, int] = {}
    total = kept = 0.0
    for path, kernel in sorted(ours.items()):
        change = np.asarray(kernel, np.float32) - np.asarray(theirs[path], np.float32)
        size = float(np.sum(np.square(change, dtype=np.float64)))
        total += size
        if path[-1] != KERNEL or change.ndim < 2 or not size:
            continue
        u, s, v = np.linalg.svd(change.reshape(-1, change.shape[-1]), full_matrices=False)
        r = min(rank, len(s))
        root = np.sqrt(s[:r])
        flat[(*path[:-1], A)] = (u[:, :r] * root).reshape(*change.shape[:-1], r)
        flat[(*path[:-1], B)] = root[:, None] * v[:r]
        ranks[path[:-1]] = r
        kept += float(np.sum(np.square(s[:r], dtype=np.float64)))
    if not ranks:
        raise ConfigError("The kernels of both networks are equal: there is nothing to extract.")
    left = min(1.0, max(0.0, 1.0 - kept / total))
    return Extracted(traverse_util.unflatten_dict(flat), left, ranks)


def _check_same(theirs: dict[Path, Array], ours: dict[Path, Array]) -> None:
    shapes = [{path: x.shape for path, x in tree.items()} for tree in (theirs, ours)]
    other = sorted(path for path in theirs.keys() | ours if len({s.get(path) for s in shapes}) > 1)
    if other:
        first = [s.get(other[0], "missing") for s in shapes]
        raise ConfigError(
            f"low rank: '{'/'.join(other[0])}' is {first[1]} and in the base {first[0]}. Factors "
            "can only be of two networks with the same parameters."
        )
