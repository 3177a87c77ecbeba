"""The network in whose features images are scored, on all devices that there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.errors import check_choice
from ddistill.interop.inception import InceptionWeights
from ddistill.networks.inception import SIDE, TAPS, Inception
from ddistill.runtime.compilation import forward_options
from ddistill.runtime.sharding import make_mesh, over_data, replicate

# What FID is defined with; `protocol.Protocol.label` knows the name too.
GENUINE = "inception-2015-12-05"
FEATURES = tuple(tap for tap in TAPS if not tap.startswith("logits"))


@dataclass(frozen=True, eq=False)
class Detector:
    """A feature network.

    Attributes:
      name: `GENUINE`, or another word for another network.
      sha256: of its weights.
      feature: which of its features; "2048" for FID.
      dim: how many there are.
      resize: what it does to the size of images.
      apply: uint8 images `[batch, H, W, 1 or 3]` -> (features `[batch, dim]`, logits `[batch, K]`),
        None in place of logits where `logits` is False.
      batch: images a call.
      logits: whether it gives the logits that the inception score is of.
    """

    name: str
    sha256: str
    feature: str
    dim: int
    resize: str
    apply: Callable[[Any], Any]
    batch: int
    logits: bool = True

    @property
    def is_fid(self) -> bool:
        """Whether the Frechet distance of its features is the FID."""
        return self.name == GENUINE and self.feature == "2048"

    @property
    def text(self) -> str:
        """Network, beginning of its hash and features, for protocols."""
        return f"{self.name}@{self.sha256[:8]}/{self.feature}"


def inception_detector(
    weights: InceptionWeights,
    batch: int = 64,
    feature: str = "2048",
    logits: bool = True,
    devices: Sequence[jax.Device] | None = None,
) -> Detector:
    """FID's Inception network, each batch spread over the devices.

    Args:
      weights: read by `ddistill.interop.inception.load_inception`.
      batch: images a call; rounded up to a multiple of the number of devices.
      feature: one of `FEATURES`.
      logits: whether the inception score will be asked for.
      devices: default all of this process.

    Raises:
      ConfigError: an unknown feature.
    """
    check_choice("--feature", feature, FEATURES)
    devices = list(devices or jax.local_devices())
    mesh = make_mesh((1, len(devices), 1), devices)
    batch = -(-batch // len(devices)) * len(devices)
    taps = (feature, "logits_unbiased") if logits else (feature,)
    module, params = Inception(taps), replicate(mesh, weights.params)

    def forward(params: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        pixels = jnp.broadcast_to(pixels, (*pixels.shape[:3], 3))  # grey images have three channels
        found: Any = module.apply({"params": params}, pixels)
        return found[feature], found.get("logits_unbiased")

    # On CPU, XLA's convolutions use all cores by themselves.
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
