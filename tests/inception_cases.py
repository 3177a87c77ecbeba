"""A random state dict of FID's Inception network, and torch-fidelity's extractor that holds it."""

import functools
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

from ddistill.interop.folded_norms import tensor_shapes
from ddistill.interop.inception import torch_layers
from ddistill.networks.inception import shapes

TORCHVISION = ("", ".datasets", ".models", ".transforms", ".transforms.functional")


@functools.cache
def random_state(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors by torch's names: kernels that keep the size of activations, norms far from 1 and 0.

    Of `RandomState`, whose numbers never change: stored results depend on them.
    """
    rng, state = np.random.RandomState(seed), {}
    for name, shape in sorted(tensor_shapes(shapes(), torch_layers()).items()):
        if name.endswith("running_var"):
            values = rng.uniform(0.5, 2.0, shape)
        elif name.endswith("bn.weight"):
            values = rng.uniform(0.7, 1.4, shape)
        elif name.endswith(("running_mean", "bias")):
            values = 0.2 * rng.standard_normal(shape)
        else:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = values.astype(np.float32)
    return state


def pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 images `[count, size, size, 3]`: smooth shapes with noise, each of other brightness."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = rng.uniform(1, 9, (count, 2, 1, 1, 3))
    smooth = np.sin(waves[:, 0] * x[..., None] * 3 + waves[:, 1] * y[..., None])
    noise = rng.uniform(-1, 1, (count, size, size, 3)) * rng.uniform(0, 1, (count, 1, 1, 1))
    pixels = 128 + 90 * smooth * rng.uniform(0.2, 1, (count, 1, 1, 3)) + 60 * noise
    return np.clip(pixels, 0, 255).astype(np.uint8)


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Empty modules in place of torchvision, whose operators do not fit every build of torch."""
    modules = {f"torchvision{name}": types.ModuleType(f"torchvision{name}") for name in TORCHVISION}
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(modules["torchvision.datasets"], name, type(name, (), {}))
    with mock.patch.dict(sys.modules, modules):
        yield


def fidelity(name: str) -> types.ModuleType:
    """A module of torch-fidelity; the test is skipped where that or torch is not installed."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    with without_torchvision():
        return importlib.import_module(f"torch_fidelity.{name}")


def extractor(taps, state):
    """torch-fidelity's network with the tensors of `state`."""
    made = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    import torch

    tensors = {name: torch.tensor(values) for name, values in state.items()}
    loaded = mock.patch("torch.load", return_value=tensors)
    with loaded, mock.patch.object(made, "load_state_dict", _load_uncounted):
        return made("inception", list(taps), feature_extractor_weights_path="given")


def _load_uncounted(module, tensors):
    """Strict but for the counters, which a file may leave out."""
    found = type(module).__mro__[1].load_state_dict(module, tensors, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)


def torch_features(network, pixels: np.ndarray, batch: int = 8) -> dict[str, np.ndarray]:
    """Activations by tap of torch-fidelity's network."""
    import torch

    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), batch):
            block = torch.tensor(pixels[start : start + batch].transpose(0, 3, 1, 2).copy())
            parts.append([x.numpy() for x in network(block)])
    return {tap: np.concatenate(arrays) for tap, arrays in zip(network.features_list, zip(*parts))}
