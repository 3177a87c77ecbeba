"""The weights of FID's Inception network from the file that torch-fidelity and pytorch-fid read.

Both projects publish the same bytes under two names: the values of TensorFlow's graph of 5 December
2015 as a torch state dict. The number in the names is the beginning of the file's SHA-256.
Nothing is downloaded: the file has to exist. A file of another hash needs `other=True`, because a
distance measured with other weights is no FID.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ddistill.errors import CheckpointError, DataError
from ddistill.interop.file_kinds import why_unusable
from ddistill.interop.tensors import file_digest
from ddistill.interop.torch_files import read_torch
from ddistill.networks.inception import shapes
from ddistill.runtime.files import cache_home, expand
from ddistill.typing import Params

NAMES = (
    "weights-inception-2015-12-05-6726825d.pth",  # torch-fidelity's
    "pt_inception-2015-12-05-6726825d.pth",  # pytorch-fid's
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# Where the file is looked for when no path is given.
VARIABLE = "DDISTILL_INCEPTION"
BN_EPSILON = 1e-3
_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class InceptionWeights:
    """Parameters of `networks.inception.Inception`.

    Attributes:
      params: the tree that `shapes()` describes, float32.
      sha256: of the file.
    """

    params: Params
    sha256: str

    @property
    def genuine(self) -> bool:
        """Whether they are the weights that FID is defined with."""
        return self.sha256 == SHA256


def load_inception(path: str | os.PathLike = "", other: bool = False) -> InceptionWeights:
    """Reads the weight file.

    Args:
      path: the file; "" looks where `default_path` says.
      other: whether a file of another hash is read too.

    Raises:
      DataError: there is no file, or it has another hash and `other` is False.
      ConfigError: the file is damaged, or not torch's.
      CheckpointError: the file does not hold exactly this network's tensors.
    """
    file = expand(path) if path else default_path()
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"The Inception weights {file}: the path {state}. {_advice()}")
    if reason := why_unusable(file):
        raise DataError(f"The Inception weights {file}: the file {reason}. {_advice()}")
    found = file_digest(file)
    if found != SHA256 and not other:
        raise DataError(
            f"{file} has the SHA-256 {found[:16]}..., not {SHA256[:16]}...: it is damaged or "
            f"another network, and what it measures is no FID. {_advice()} Give --other_weights to "
            "score with this file all the same; the scores are then named after it."
        )
    weights = read_torch(file)
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{file} holds a {type(weights).__name__}, no state dict.")
    return InceptionWeights(from_state_dict(weights, str(file)), found)


def default_path() -> Path:
    """$DDISTILL_INCEPTION, or the first of `NAMES` that lies in ~/.cache/ddistill."""
    if chosen := os.environ.get(VARIABLE):
        return expand(chosen)
    cache = cache_home()
    if cache is None:
        raise DataError(
            "The Inception weights: there is no home folder to look for them in. Give --weights, "
            f"or set {VARIABLE} to the file or XDG_CACHE_HOME to the folder with ddistill/ in it."
        )
    home = cache / "ddistill"
    there = [home / name for name in NAMES if (home / name).is_file()]
    return (there or [home / NAMES[0]])[0]


def from_state_dict(state: Mapping[str, np.ndarray], where: str = "the state dict") -> Params:
    """torch's tensors as parameters of `Inception`, batch norms folded in.

    y = (conv(x) - mean) / sqrt(var + 1e-3) * weight + bias is a convolution with another kernel and
    a bias, computed in float64.

    Args:
      state: arrays by torch's names, kernels `[out, in, height, width]`.
      where: the file in messages.

    Raises:
      CheckpointError: tensors that are missing, unknown, of another shape or not finite; all used
        exactly once but the counters `num_batches_tracked`, which mean nothing here.
    """
    expected = shapes()
    _check_names(state, _torch_shapes(expected), where)
    tensors = {name: np.asarray(state[name], np.float64) for name in _torch_shapes(expected)}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{where}: the tensor '{name}' holds values that are not finite.")
        if name.endswith("running_var") and tensor.min() < 0:
            raise CheckpointError(f"{where}: '{name}' is a variance and holds values below 0.")

    def layer(prefix: str) -> dict[str, np.ndarray]:
        if prefix == "fc":
            made = {"kernel": tensors["fc.weight"].T, "bias": tensors["fc.bias"]}
        else:
            made = _folded(tensors, prefix)
        return {name: np.ascontiguousarray(x, np.float32) for name, x in made.items()}

    return _by_layer(expected, layer)


def _folded(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    weight, bias, mean, variance = (tensors[f"{prefix}.bn.{name}"] for name in _NORM)
    gain = weight / np.sqrt(variance + BN_EPSILON)
    kernel = tensors[f"{prefix}.conv.weight"].transpose(2, 3, 1, 0)
    return {"kernel": kernel * gain, "bias": bias - mean * gain}


def _by_layer(tree: Mapping, layer: Callable[[str], Params], prefix: str = "") -> Params:
    """`layer(name)` for every layer of a tree of parameters, names joined with dots as in torch."""
    if "kernel" in tree:
        return layer(prefix)
    return {
        name: _by_layer(part, layer, f"{prefix}.{name}" if prefix else name)
        for name, part in tree.items()
    }


def _torch_shapes(expected: Mapping) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a state dict has to hold."""
    found: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(expected)[0]:
        *layers, kind = (key.key for key in path)
        prefix = ".".join(layers)
        if prefix == "fc":
            found["fc.weight" if kind == "kernel" else "fc.bias"] = leaf.shape[::-1]
        elif kind == "kernel":
            height, width, inputs, outputs = leaf.shape
            found[f"{prefix}.conv.weight"] = (outputs, inputs, height, width)
        else:
            found |= {f"{prefix}.bn.{name}": leaf.shape for name in _NORM}
    return found


def _check_names(state: Mapping[str, np.ndarray], wanted: Mapping[str, tuple], where: str) -> None:
    given = {name for name in state if not str(name).endswith(".bn.num_batches_tracked")}
    problems = [
        f"{len(names)} {kind} (first '{sorted(map(str, names))[0]}')"
        for kind, names in (("missing", wanted.keys() - given), ("unknown", given - wanted.keys()))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{where} is no Inception network of FID: of its {len(wanted)} tensors "
            f"{' and '.join(problems)}. torchvision's Inception v3 is another network. {_advice()}"
        )
    for name, shape in wanted.items():
        if tuple(np.shape(state[name])) != tuple(shape):
            raise CheckpointError(
                f"{where}: '{name}' has the shape {tuple(np.shape(state[name]))}, not {shape}."
            )


def _advice() -> str:
    return (
        f"It is the file {NAMES[0]} of torch-fidelity's release v0.2.0, or {NAMES[1]} of "
        f"pytorch-fid's release fid_weights (the same bytes; SHA-256 {SHA256}). Get it from one of "
        f"these projects' release pages, and give its path with --weights or {VARIABLE}, or put it "
        "into ~/.cache/ddistill."
    )
