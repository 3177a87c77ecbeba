"""The weights of FID's Inception network from the file that torch-fidelity and pytorch-fid read.

Both projects publish the same bytes under two names: the values of TensorFlow's graph of 5 December
2015 as a torch state dict. The number in the names is the beginning of the file's SHA-256.
Nothing is downloaded: the file has to exist. A file of another hash needs `other=True`, because a
distance measured with other weights is no FID.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddistill.errors import CheckpointError, DataError
from ddistill.interop.file_kinds import why_unusable
from ddistill.interop.folded_norms import fold_norms, layer_names
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

    Args:
      state: arrays by torch's names, kernels `[out, in, height, width]`.
      where: the file in messages.

    Raises:
      CheckpointError: tensors that are missing, unknown, of another shape or not finite; all used
        exactly once but the counters `num_batches_tracked`, which mean nothing here.
    """
    advice = f"torchvision's Inception v3 is another network. {_advice()}"
    return fold_norms(state, shapes(), torch_layers(), (where, "Inception network of FID", advice))


def torch_layers() -> dict[str, tuple[str, str]]:
    """By the name of a layer, torch's names of its convolution and of the norm after it."""
    layers = {name: (f"{name}.conv", f"{name}.bn") for name in layer_names(shapes())}
    return {**layers, "fc": ("fc", "")}


def _advice() -> str:
    return (
        f"It is the file {NAMES[0]} of torch-fidelity's release v0.2.0, or {NAMES[1]} of "
        f"pytorch-fid's release fid_weights (the same bytes; SHA-256 {SHA256}). Get it from one of "
        f"these projects' release pages, and give its path with --weights or {VARIABLE}, or put it "
        "into ~/.cache/ddistill."
    )
