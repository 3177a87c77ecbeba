"""Feature networks for scores of images: FID's Inception and EfficientNet-Lite0.

They run on all devices of the process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ddistill.errors import check_choice
from ddistill.evaluation.metrics.geometry import clean_resize, of_each
from ddistill.interop.efficientnet_lite import Lite0Weights
from ddistill.interop.inception import InceptionWeights
from ddistill.networks.efficientnet_lite import DIM as LITE0_DIM
from ddistill.networks.efficientnet_lite import NAME as LITE0
from ddistill.networks.efficientnet_lite import SIDE as LITE0_SIDE
from ddistill.networks.efficientnet_lite import EfficientNetLite0
from ddistill.networks.inception import SIDE, TAPS, Inception
from ddistill.runtime.compilation import forward_options
from ddistill.runtime.sharding import make_mesh, over_data, replicate

# The network of the FID; `records.protocol.Protocol.label` uses the name too.
GENUINE = "inception-2015-12-05"
# Feature networks, by the names of --features.
INCEPTION = "inception"
NETWORKS = (INCEPTION, LITE0)
FEATURES = tuple(tap for tap in TAPS if not tap.startswith("logits"))
# How FID's network sees images, by the code that published numbers come from: TensorFlow 1's
# (`networks.inception.resize_tf1`), clean-fid's (`geometry.clean_resize`), or pytorch-fid's:
# bilinear with half-pixel centres, and 255 becomes 1.
RESIZES = {
    "tf1": f"tf1-bilinear-{SIDE}",
    "clean": f"clean-bicubic-{SIDE}",
    "torch": f"torch-bilinear-{SIDE}",
}


Apply = Callable[[np.ndarray], tuple[jax.Array, jax.Array | None]]


@dataclass(frozen=True, eq=False)
class Detector:
    """A feature network.

    Attributes:
      name: `GENUINE`, or the name of another network.
      sha256: SHA-256 of the weights.
      feature: name of the layer; "2048" for FID.
      dim: number of features D.
      resize: how the network resizes images.
      apply: uint8 images `[batch, H, W, 1 or 3]` -> (features `[batch, D]`, logits `[batch, K]`);
        the logits are None if `logits` is False.
      batch: images per batch.
      logits: whether `apply` returns the logits, which the inception score needs.
      network: one of `NETWORKS`, or "clip".
    """

    name: str
    sha256: str
    feature: str
    dim: int
    resize: str
    apply: Apply
    batch: int
    logits: bool = True
    network: str = INCEPTION

    @property
    def is_fid(self) -> bool:
        """Whether the Frechet distance of these features is the FID."""
        return self.name == GENUINE and self.feature == "2048"

    @property
    def text(self) -> str:
        """Name, first 8 digits of the hash, and layer, for protocols.

        FID's network with another resizing than its own has the name of that too.
        """
        resized = [name for name, text in RESIZES.items() if text == self.resize and name != "tf1"]
        return "/".join((f"{self.name}@{self.sha256[:8]}", self.feature, *resized))


def inception_detector(
    weights: InceptionWeights,
    batch: int = 64,
    feature: str = "2048",
    logits: bool = True,
    devices: Sequence[jax.Device] | None = None,
    resize: str = "tf1",
) -> Detector:
    """Builds the Inception network of the FID, with each batch sharded over the devices.

    Args:
      weights: weights from `ddistill.interop.inception.load_inception`.
      batch: images per batch; rounded up to a multiple of the number of devices.
      feature: one of `FEATURES`.
      logits: compute the logits for the inception score.
      devices: devices to use; None for all local devices.
      resize: one of `RESIZES`.

    Raises:
      ConfigError: `feature` or `resize` is unknown.
    """
    check_choice("--feature", feature, FEATURES)
    check_choice("resize", resize, RESIZES)
    taps = (feature, "logits_unbiased") if logits else (feature,)
    module = Inception(taps)

    def forward(params: PyTree, pixels: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        pixels = jnp.broadcast_to(pixels, (*pixels.shape[:3], 3))  # grey images get three channels
        if resize == "torch":
            shape = (len(pixels), SIDE, SIDE, 3)
            floats = jax.image.resize(pixels.astype(jnp.float32), shape, "linear", antialias=False)
            pixels = floats * (256 / 255)  # the network makes (x - 128) / 128 of it
        found: dict[str, jax.Array] = module.apply({"params": params}, pixels)  # type: ignore[assignment]
        return found[feature], found.get("logits_unbiased")

    apply, batch = over_devices(forward, weights.params, batch, devices)
    return Detector(
        name=GENUINE if weights.genuine else "inception-unverified",
        sha256=weights.sha256,
        feature=feature,
        dim=TAPS[feature],
        resize=RESIZES[resize],
        apply=_after_clean_resize(apply) if resize == "clean" else apply,
        batch=batch,
        logits=logits,
    )


def lite0_detector(
    weights: Lite0Weights, batch: int = 64, devices: Sequence[jax.Device] | None = None
) -> Detector:
    """Builds EfficientNet-Lite0, with each batch sharded over the devices.

    Args:
      weights: weights from `ddistill.interop.efficientnet_lite.load_lite0`.
      batch: images per batch; rounded up to a multiple of the number of devices.
      devices: devices to use; None for all local devices.
    """
    module = EfficientNetLite0()

    def forward(params: PyTree, pixels: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        images = pixels.astype(jnp.float32) / 127.5 - 1
        found: tuple[jax.Array, jax.Array] = module.apply({"params": params}, images)  # type: ignore[assignment]
        return found[1], None

    apply, batch = over_devices(forward, weights.params, batch, devices)
    return Detector(
        name=weights.name,
        sha256=weights.sha256,
        feature=str(LITE0_DIM),
        dim=LITE0_DIM,
        resize=f"bicubic-{LITE0_SIDE}",
        apply=apply,
        batch=batch,
        logits=False,
        network=LITE0,
    )


def _after_clean_resize(apply: Apply) -> Apply:
    """The network, of images that Pillow has resized; resizing to its own size does nothing."""
    return lambda pixels: apply(of_each(lambda image: clean_resize(image, SIDE), pixels))


def over_devices(
    forward: Callable[[PyTree, jax.Array], tuple[jax.Array, jax.Array | None]],
    params: PyTree,
    batch: int,
    devices: Sequence[jax.Device] | None,
) -> tuple[Apply, int]:
    """The compiled function of images alone, and the size of its batches.

    Args:
      forward: parameters and images -> features and logits.
      params: the parameters.
      batch: images per batch; rounded up to a multiple of the number of devices.
      devices: devices to use; None for all local devices.
    """
    devices = list(devices or jax.local_devices())
    mesh = make_mesh((1, len(devices), 1), devices)
    placed, place = replicate(mesh, params), over_data(mesh)
    # On CPU, one convolution of XLA uses all cores.
    compiled = jax.jit(forward, compiler_options=forward_options(devices[0].platform))

    def apply(pixels: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
        return compiled(placed, jax.device_put(pixels, place))

    return apply, -(-batch // len(devices)) * len(devices)
