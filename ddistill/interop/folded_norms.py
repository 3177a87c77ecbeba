"""Networks of torch with a batch norm after each convolution, read as convolutions with a bias.

y = (conv(x) - mean) / sqrt(var + 1e-3) * weight + bias is a convolution with another kernel and a
bias, computed in float64.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from ddistill.errors import CheckpointError
from ddistill.typing import Params

BN_EPSILON = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # of batch norms in training
# By the name of a layer of ours, torch's names of its convolution and of the norm after it; a layer
# without a norm is dense.
Layers = Mapping[str, tuple[str, str]]


def layer_names(expected: Mapping, prefix: str = "") -> Iterator[str]:
    """The names of all layers of a tree of parameters, joined with dots."""
    if "kernel" in expected:
        yield prefix
        return
    for name, part in expected.items():
        yield from layer_names(part, f"{prefix}.{name}" if prefix else name)


def fold_norms(
    state: Mapping[str, np.ndarray],
    expected: Mapping,
    layers: Layers,
    messages: tuple[str, str, str],
) -> Params:
    """torch's tensors as parameters, batch norms folded in.

    Args:
      state: arrays by torch's names, kernels `[out, in, height, width]`.
      expected: our tree of parameters, with shapes.
      layers: torch's names.
      messages: the file; what it should be; what to do where it is not.

    Raises:
      CheckpointError: tensors that are missing, unknown, of another shape or not finite. Each is
        used exactly once, but for the counters of batch norms, which inference does not use.
    """
    wanted, where = tensor_shapes(expected, layers), messages[0]
    _check(state, wanted, [norm for _, norm in layers.values() if norm], messages)
    tensors = {name: np.asarray(state[name], np.float64) for name in wanted}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{where}: the tensor '{name}' holds values that are not finite.")
        if name.endswith("running_var") and tensor.min() < 0:
            raise CheckpointError(f"{where}: '{name}' is a variance and holds values below 0.")

    def layer(name: str) -> Params:
        conv, norm = layers[name]
        made = {"kernel": tensors[f"{conv}.weight"].T}
        if norm:
            weight, bias, mean, variance = (tensors[f"{norm}.{part}"] for part in _NORM)
            gain = weight / np.sqrt(variance + BN_EPSILON)
            kernel = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0)
            made = {"kernel": kernel * gain, "bias": bias - mean * gain}
        else:
            made["bias"] = tensors[f"{conv}.bias"]
        return {key: np.ascontiguousarray(x, np.float32) for key, x in made.items()}

    return _by_layer(expected, layer)


def _by_layer(tree: Mapping, layer: Callable[[str], Params], prefix: str = "") -> Params:
    if "kernel" in tree:
        return layer(prefix)
    return {
        name: _by_layer(part, layer, f"{prefix}.{name}" if prefix else name)
        for name, part in tree.items()
    }


def tensor_shapes(expected: Mapping, layers: Layers) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a state dict has to hold."""
    found: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(expected)[0]:
        *keys, kind = (key.key for key in path)
        conv, norm = layers[".".join(keys)]
        if not norm:
            found[f"{conv}.{'weight' if kind == 'kernel' else 'bias'}"] = leaf.shape[::-1]
        elif kind == "kernel":
            height, width, inputs, outputs = leaf.shape
            found[f"{conv}.weight"] = (outputs, inputs, height, width)
        else:
            found |= {f"{norm}.{part}": leaf.shape for part in _NORM}
    return found


def _check(
    state: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    norms: list[str],
    messages: tuple[str, str, str],
) -> None:
    where, title, advice = messages
    given = set(state) - {f"{norm}.{_COUNTER}" for norm in norms}
    problems = [
        f"{len(names)} {kind} (first '{min(map(str, names))}')"
        for kind, names in (("missing", wanted.keys() - given), ("unknown", given - wanted.keys()))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{where} is no {title}: of its {len(wanted)} tensors {' and '.join(problems)}. "
            f"{advice}"
        )
    for name, shape in wanted.items():
        if tuple(np.shape(state[name])) != tuple(shape):
            raise CheckpointError(
                f"{where}: '{name}' has the shape {tuple(np.shape(state[name]))}, not {shape}."
            )
