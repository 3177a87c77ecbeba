"""LPIPS (arXiv 1801.03924, version 0.1): a distance of images in features of AlexNet or VGG-16.

The weights are the user's: a file that `torch.save(lpips.LPIPS(net="alex").state_dict(), FILE)` of
the package `lpips` writes, with `net="alex"` or `net="vgg"`. It is read without torch and without
running code of the file.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ddistill.errors import ConfigError
from ddistill.evaluation.metrics.features import extract
from ddistill.interop.tensors import file_digest, read_tensors
from ddistill.runtime.compilation import forward_options
from ddistill.runtime.files import expand

# Smaller images vanish in the layers of the networks.
LEAST_SIDE = 32
# Shift and scale of the channels, for images in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


@dataclass(frozen=True)
class Network:
    """The convolutions of a network, in slices; the output of every slice is compared.

    Attributes:
      slices: numbers of the convolutions of each slice, in torchvision's numbering.
      channels: output channels of each slice.
      first: (kernel, stride, padding) of the first convolution; the others have stride 1 and keep
        the size.
      pool: (window, stride) of the max pooling before a slice.
      pooled: slices that start with max pooling.
    """

    slices: tuple[tuple[int, ...], ...]
    channels: tuple[int, ...]
    first: tuple[int, int, int]
    pool: tuple[int, int]
    pooled: tuple[int, ...]


NETWORKS = {
    "alex": Network(
        ((0,), (3,), (6,), (8,), (10,)), (64, 192, 384, 256, 256), (11, 4, 2), (3, 2), (1, 2)
    ),
    "vgg": Network(
        ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
        (64, 128, 256, 512, 512),
        (3, 1, 1),
        (2, 2),
        (1, 2, 3, 4),
    ),
}


@dataclass(frozen=True, eq=False)
class Lpips:
    """A network with weights; made by `read_lpips`.

    Attributes:
      name: "alex" or "vgg".
      weights: arrays by torch's names.
      digest: hash of the file.
    """

    name: str
    weights: Mapping[str, Float[np.ndarray, "..."]]
    digest: str

    @property
    def metric(self) -> str:
        """Name of the metric in results."""
        return f"lpips_{self.name}_to_teacher"

    def distances(
        self, a: Float[np.ndarray, "N H W C"], b: Float[np.ndarray, "N H W C"], batch: int
    ) -> Float[np.ndarray, " N"]:
        """LPIPS of each image of `a` to the same image of `b`, for images in [-1, 1].

        Args:
          a: images with 1 or 3 channels; grey is repeated.
          b: images of the same shape.
          batch: images per batch.
        """
        apply = functools.partial(_of_pairs(), self.name, jax.device_put(dict(self.weights)))
        pairs = np.stack([np.clip(a, -1, 1), np.clip(b, -1, 1)], axis=3)
        return np.asarray(extract(apply, pairs, batch))


def read_lpips(path: str) -> Lpips:
    """Reads the state dict of `lpips.LPIPS`; the network is derived from the names of the tensors.

    Raises:
      ConfigError: the file is missing or damaged, or does not hold exactly one of the networks.
    """
    file = expand(path)
    found = read_tensors(file)
    name = "vgg" if "net.slice1.2.weight" in found else "alex"
    expected = shapes(name)
    # The list of linear layers names them a second time, and the scaling is fixed.
    known = {k: v for k, v in found.items() if not k.startswith(("lins.", "scaling_layer."))}
    missing, unknown = expected.keys() - known.keys(), known.keys() - expected.keys()
    wrong = [k for k in expected.keys() & known.keys() if known[k].shape != expected[k]]
    faults = {"lacks": missing, "has the unknown": unknown, "has another shape of": wrong}
    for kind, names in faults.items():
        if names:
            some = ", ".join(sorted(names)[:3])
            raise ConfigError(
                f"config.evaluation.lpips_weights={path!r} {kind} {some}: not the LPIPS of {name}. "
                "torch.save(lpips.LPIPS(net='alex').state_dict(), FILE) writes such a file; net is "
                "'alex' or 'vgg'."
            )
    weights = {k: np.asarray(v, np.float32) for k, v in known.items()}
    return Lpips(name, weights, file_digest(Path(file)))


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a network by torch's names, kernels `[out, in, height, width]`."""
    network, width = NETWORKS[name], 3
    found: dict[str, tuple[int, ...]] = {}
    side = network.first[0]
    for i, (layers, channels) in enumerate(zip(network.slices, network.channels)):
        for layer in layers:
            found[f"net.slice{i + 1}.{layer}.weight"] = (channels, width, side, side)
            found[f"net.slice{i + 1}.{layer}.bias"] = (channels,)
            width, side = channels, 5 if name == "alex" and i == 0 else 3
        found[f"lin{i}.model.1.weight"] = (1, channels, 1, 1)
    return found


@functools.cache
def _of_pairs() -> Callable[..., Array]:
    """The compiled function of a name, weights, and pairs `[B, H, W, 2, C]`.

    Weights are an argument: those inside a program take long to compile.
    """

    def distance(name: str, weights: Mapping[str, Array], pairs: Array) -> Array:
        return _distance(name, weights, pairs[..., 0, :], pairs[..., 1, :])

    return jax.jit(distance, static_argnums=0, compiler_options=forward_options())


def _distance(
    name: str,
    weights: Mapping[str, Array],
    a: Float[Array, "B H W C"],
    b: Float[Array, "B H W C"],
) -> Float[Array, " B"]:
    """The sum over slices of weighted squared differences of unit features, averaged in space."""
    total = jnp.zeros(a.shape[0])
    outputs = (_slices(name, weights, images) for images in (a, b))
    for i, (one, other) in enumerate(zip(*outputs)):
        weight = weights[f"lin{i}.model.1.weight"][0, :, 0, 0]
        squares = jnp.square(_unit(one) - _unit(other))
        total += (squares * weight).sum(axis=-1).mean(axis=(1, 2))
    return total


def _unit(features: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    norms = jnp.sqrt(jnp.square(features).sum(axis=-1, keepdims=True))
    return features / (norms + _EPSILON)


def _slices(
    name: str, weights: Mapping[str, Array], images: Float[Array, "B H W C"]
) -> Sequence[Float[Array, "B H W C"]]:
    """The output of every slice."""
    network = NETWORKS[name]
    x = (jnp.broadcast_to(images, (*images.shape[:3], 3)) - jnp.array(_SHIFT)) / jnp.array(_SCALE)
    window, stride = network.pool
    outputs = []
    for i, layers in enumerate(network.slices):
        if i in network.pooled:
            sizes, steps = (1, window, window, 1), (1, stride, stride, 1)
            x = lax.reduce_window(x, -jnp.inf, lax.max, sizes, steps, "VALID")
        for layer in layers:
            kernel = weights[f"net.slice{i + 1}.{layer}.weight"]
            first = i == 0 and layer == 0
            step = network.first[1] if first else 1
            padding = network.first[2] if first else kernel.shape[2] // 2
            x = lax.conv_general_dilated(
                x,
                jnp.transpose(kernel, (2, 3, 1, 0)),
                (step, step),
                [(padding, padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x + weights[f"net.slice{i + 1}.{layer}.bias"])
        outputs.append(x)
    return outputs
