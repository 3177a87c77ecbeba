"""Where the tensors of EDM's networks belong in ours."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddistill import networks
from ddistill.errors import ConfigError
from ddistill.interop.tensors import full_precision
from ddistill.networks.weights import variable_shapes
from ddistill.typing import Options, Params

_BLOCK = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "shortcut": "skip",
    "attention/norm": "norm2",
    "attention/qkv": "qkv",
    "attention/out": "proj",
}
_EMBEDDING = {
    "time_0": "map_layer0",
    "time_1": "map_layer1",
    "class": "map_label",
    "augment": "map_augment",
}


def place(
    network: Options, tensors: Mapping[str, np.ndarray], image_shape: tuple[int, int, int]
) -> Params:
    """Our parameters, made of the tensors of an EDM network; each of these is used exactly once.

    Args:
      network: ours, by name and options.
      tensors: by their names in an `EDMPrecond`, "model.enc.32x32_conv.weight" for example. float16
        and float64 become float32.
      image_shape: of the images of the network.

    Raises:
      ConfigError: tensors are missing, left over, of another shape, not of real numbers or not
        finite; or the network is none that can be built.
    """
    shapes = _shapes(network, image_shape)
    names = {path: f"model.{edm_name(path, network, image_shape[0])}" for path in shapes}
    filters = {n for n in tensors if n.endswith(".resample_filter")}
    _check_names(set(names.values()), set(tensors) - filters)
    _check_filters({n: tensors[n] for n in filters}, network.get("resample_filter", (1, 1)))
    placed = {p: _convert(p, names[p], tensors[names[p]], shapes[p]) for p in shapes}
    return traverse_util.unflatten_dict(placed)


def edm_name(path: Sequence[str], network: Options, side: int) -> str:
    """EDM's name of one of our parameters.

    Args:
      path: ours, ("down_0_1", "attention", "qkv", "kernel") for example.
      network: our network by name and options.
      side: height of its images.
    """
    first, *inner = path
    if first == "frequencies":
        return "map_noise.freqs"
    leaf = "bias" if path[-1] == "bias" else "weight"
    if first in _EMBEDDING:
        return f"{_EMBEDDING[first]}.{leaf}"
    part = "/".join(inner[:-1])
    module = _module_name(first, network, side)
    return f"{module}.{_BLOCK[part]}.{leaf}" if part else f"{module}.{leaf}"


def _module_name(ours: str, network: Options, side: int) -> str:
    """EDM's name of one of our modules. EDM calls levels by their size, and puts what leads from
    one level to the next into the latter."""
    levels = len(network["multipliers"])
    sizes = [f"{side >> i}x{side >> i}" for i in range(levels)]
    if ours == "conv_in":
        return f"enc.{sizes[0]}_conv"
    if ours in ("mid_0", "mid_1"):
        return f"dec.{sizes[-1]}_in{ours[-1]}"
    if ours in ("norm_out", "conv_out"):
        what = ours.removesuffix("_out")
        return f"dec.{sizes[0]}_aux_{what}" if network["name"] == "song" else f"out_{what}"
    way, level, what = ours.split("_", 2)
    here = int(level)
    if way == "down":
        side_path = {"skip": "skip", "residual": "residual"}.get(network.get("encoder", ""), "")
        if what == "resample":
            return f"enc.{sizes[here + 1]}_down"
        if what == "side":
            return f"enc.{sizes[here + 1]}_aux_{side_path}"
        return f"enc.{sizes[here]}_block{what}"
    if what == "resample":
        return f"dec.{sizes[here - 1]}_up"
    if what in ("norm_out", "conv_out"):
        return f"dec.{sizes[here]}_aux_{what.removesuffix('_out')}"
    return f"dec.{sizes[here]}_block{what}"


def _shapes(
    network: Options, image_shape: tuple[int, int, int]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of our parameters by their paths; no device is asked for, which "auto" would."""
    module = networks.build(**{**network, "conv_impl": "xla"})
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    tree = variable_shapes(module, image, time)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}


def _check_names(wanted: set[str], given: set[str]) -> None:
    for what, names in (("lacks", wanted - given), ("has left over", given - wanted)):
        if names:
            listed = ", ".join(sorted(names)[:5])
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ConfigError(
                f"it {what} the tensors {listed}{more}. Its options and its tensors are not of one "
                "network: it was changed after it was trained, or it is of another version of EDM."
            )


def _check_filters(filters: Mapping[str, np.ndarray], taps: Sequence[int]) -> None:
    """Each resampling layer has its filter as a tensor: it has to be the one of the options."""
    row = np.asarray(taps, np.float32) / sum(taps)
    for name, value in filters.items():
        if value.shape != (1, 1, len(row), len(row)) or not np.allclose(
            value[0, 0].astype(np.float32), np.outer(row, row), atol=1e-3
        ):
            raise ConfigError(f"'{name}' is not the filter {tuple(taps)} of its options.")


def _convert(
    path: tuple[str, ...], name: str, tensor: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """One tensor as a parameter of ours, in float32."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ConfigError(f"'{name}' is of {tensor.dtype}; a tensor of real numbers is needed.")
    axes = {"kernel": (2, 3, 1, 0) if len(shape) == 4 else (1, 0)}.get(path[-1], (0,))
    expected = tuple(shape[axes.index(i)] for i in range(len(shape)))
    if tensor.shape != expected:
        raise ConfigError(
            f"'{name}' has the shape {tensor.shape}, but {expected} follows from its options."
        )
    value = full_precision(f"'{name}'", tensor)
    if "qkv" in path:
        # EDM puts query, key and value of a channel next to one another; we put all queries first.
        rest = value.shape[1:]
        value = value.reshape(-1, 3, *rest).swapaxes(0, 1).reshape(-1, *rest)
    return np.ascontiguousarray(value.transpose(axes))
