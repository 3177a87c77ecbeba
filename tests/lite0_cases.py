"""A random state dict of EfficientNet-Lite0, files with it, and the torch package that holds it."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ddistill.interop.efficientnet_lite import torch_layers
from ddistill.interop.folded_norms import tensor_shapes
from ddistill.interop.tensors import write_tensors
from ddistill.networks.efficientnet_lite import EfficientNetLite0, shapes

NARROW = 24


@functools.cache
def random_state(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors by torch's names: kernels that keep the size of activations, norms far from 1 and 0.

    Of `RandomState`, whose numbers never change: stored results depend on them.
    """
    rng, state = np.random.RandomState(seed), {}
    norms = tuple(norm for _, norm in torch_layers().values() if norm)
    for name, shape in sorted(tensor_shapes(shapes(), torch_layers()).items()):
        if name.endswith("running_var"):
            values = rng.uniform(0.5, 2.0, shape)
        elif name.startswith(norms) and name.endswith(".weight"):
            values = rng.uniform(0.7, 1.4, shape)
        elif name.endswith(("running_mean", "bias")):
            values = 0.2 * rng.standard_normal(shape)
        else:
            values = rng.standard_normal(shape) * math.sqrt(2 / np.prod(shape[1:]))
        state[name] = values.astype(np.float32)
    return state


def write_state(path: Path, **changes: np.ndarray) -> Path:
    """A file with `random_state()`; the format is read from the content and not from the name."""
    write_tensors(path, {**random_state(), **changes})
    return path


def torch_outputs(state, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and pooled features that the torch package makes of uint8 images of 224 pixels.

    Args:
      state: arrays by torch's names, or the path of a weight file.
      pixels: `[B, 224, 224, 3]`.
    """
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    if isinstance(state, Path):
        tensors = torch.load(state, weights_only=True)
    else:
        tensors = {name: torch.tensor(values) for name, values in state.items()}
    found = network.load_state_dict(tensors, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    images = torch.tensor((pixels.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128)
    with torch.no_grad():
        features = network.extract_features(images).mean((2, 3))
        return network(images).numpy(), features.numpy()


@dataclass(frozen=True)
class Narrow:
    """The network at 32 pixels with its first features alone, which are scored quickly."""

    def apply(self, variables, images):
        logits, features = EfficientNetLite0(side=32).apply(variables, images)
        return logits, features[:, :NARROW]
