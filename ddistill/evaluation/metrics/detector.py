"""The feature network of FID, inception score and KID, on all devices of the process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ddistill.errors import check_choice
from ddistill.interop.inception import InceptionWeights
from ddistill.networks.inception import SIDE, TAPS, Inception
from ddistill.runtime.compilation import forward_options
from ddistill.runtime.sharding import make_mesh, over_data, replicate

# The network of the FID; `records.protocol.Protocol.label` uses the name too.
GENUINE = "inception-2015-12-05"
FEATURES = tuple(tap for tap in TAPS if not tap.startswith("logits"))


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
    """

    name: str
    sha256: str
    feature: str
    dim: int
    resize: str
    apply: Callable[[np.ndarray], tuple[jax.Array, jax.Array | None]]
    batch: int
    logits: bool = True

    @property
    def is_fid(self) -> bool:
        """Whether the Frechet distance of these features is the FID."""
        return self.name == GENUINE and self.feature == "2048"

    @property
    def text(self) -> str:
        """Name, first 8 digits of the hash, and layer, for protocols."""
        return f"{self.name}@{self.sha256[:8]}/{self.feature}"


def inception_detector(
    weights: InceptionWeights,
    batch: int = 64,
    feature: str = "2048",
    logits: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Detector:
    """Builds the Inception network of the FID, with each batch sharded over the devices.

    Args:
      weights: weights from `ddistill.interop.inception.load_inception`.
      batch: images per batch; rounded up to a multiple of the number of devices.
      feature: one of `FEATURES`.
      logits: compute the logits for the inception score.
      devices: devices to use; None for all local devices.

    Raises:
      ConfigError: `feature` is unknown.
    """
    check_choice("--feature", feature, FEATURES)
    devices = list(devices or jax.local_devices())
    mesh = make_mesh((1, len(devices), 1), devices)
    batch = -(-batch // len(devices)) * len(devices)
    taps = (feature, "logits_unbiased") if logits else (feature,)
    module, params = Inception(taps), replicate(mesh, weights.params)

    def forward(params: PyTree, pixels: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        pixels = jnp.broadcast_to(pixels, (*pixels.shape[:3], 3))  # grey images get three channels
        found: dict[str, jax.Array] = module.apply({"params": params}, pixels)  # type: ignore[assignment]
        return found[feature], found.get("logits_unbiased")

    # On CPU, one convolution of XLA uses all cores.
    compiled = jax.jit(forward, compiler_options=forward_options(devices[0].platform))
    place = over_data(mesh)

    def apply(pixels: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
        return compiled(params, jax.device_put(pixels, place))

    return Detector(
        name=GENUINE if weights.genuine else "inception-unverified",
        sha256=weights.sha256,
        feature=feature,
        dim=TAPS[feature],
        resize=f"tf1-bilinear-{SIDE}",
        apply=apply,
        batch=batch,
        logits=logits,
    )
