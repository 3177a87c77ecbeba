"""Training of an autoencoder for latent diffusion (arXiv 2112.10752)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, PyTree

from ddistill.errors import ConfigError, check_choice
from ddistill.networks.autoencoder_kl import draw, gaussian
from ddistill.networks.patch_discriminator import PatchDiscriminator
from ddistill.networks.weights import Weights
from ddistill.objectives.base import Objective, check_not_negative, check_unused, hparam
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.parts import (
    SCALING,
    Alarm,
    Auxiliary,
    Bound,
    Diagnostics,
    ImageShape,
    LossAux,
    Measures,
    NetworkForm,
    Networks,
    Requirements,
    StageFacts,
    Update,
)
from ddistill.typing import Images, Metrics, PerExample

RECONSTRUCTIONS = ("l1", "l2")
# Names of the numbers that are stored with a trained autoencoder.
LATENT_STD, PSNR, KL = "latent_std", "psnr", "kl"
# The least squared error that a PSNR is computed from: 106 dB.
_LEAST_ERROR = 1e-10


@struct.dataclass
class BoundAutoencoder:
    """An autoencoder and its weights.

    Attributes:
      weights: of the network.
      module: a network with the methods of `ddistill.networks.autoencoder_kl.AutoencoderKL`.
    """

    weights: Weights
    module: nn.Module = struct.field(pytree_node=False)

    def encode(self, images: Images) -> Float[Array, "B h w c2"]:
        """Moments of latents before scaling; see `AutoencoderKL.encode`."""
        return cast(Array, self.module.apply(self.weights.variables(), images, method="encode"))

    def decode(self, latents: Images) -> Images:
        """Images of latents before scaling, about in [-1, 1] and not clipped."""
        return cast(Array, self.module.apply(self.weights.variables(), latents, method="decode"))

    def __call__(self, images: Images) -> Images:
        """Reconstructions from the means of the latents, not clipped."""
        return self.decode(draw(self.encode(images), None))


def _inputs(image_shape: ImageShape, conditional: bool) -> tuple[PyTree, ...]:
    del conditional
    return (jnp.zeros((1, *image_shape)),)


def _bind(module: nn.Module, weights: Weights, prediction: str) -> BoundAutoencoder:
    del prediction
    return BoundAutoencoder(weights, module)


AUTOENCODER = NetworkForm("autoencoder", _inputs, _bind)


@struct.dataclass
class _BoundDiscriminator:
    """The discriminator and its weights: images to logits."""

    weights: Weights
    module: nn.Module = struct.field(pytree_node=False)

    def __call__(self, images: Images) -> Float[Array, "B h w 1"]:
        return cast(Array, self.module.apply(self.weights.variables(), images))


def _bind_discriminator(module: nn.Module, weights: Weights, prediction: str) -> Bound:
    del prediction
    return _BoundDiscriminator(weights, module)


_DISCRIMINATOR = NetworkForm("classifier", _inputs, _bind_discriminator)


@dataclass(frozen=True)
class Autoencoder(Objective):
    """Reconstruction, a KL divergence to the standard normal, and optionally a discriminator.

    The loss of an image is the mean error of its pixels, plus `kl_weight` times the KL divergence
    of its latent, summed over the latent's dimensions and divided by the number of pixel values, as
    in the paper's code. Latents are drawn from their Gaussians, one draw for each image.

    With `gan_weight` above 0, a discriminator of patches is trained by the hinge loss, and the
    autoencoder's loss gets `gan_weight` times the negative mean logit of the reconstruction. The
    weight is fixed; the paper's code adapts it to the gradients of the last layer. There is no
    perceptual distance (LPIPS), which needs the weights of a pretrained network.

    After training, the standard deviation of the latents of the training images is measured. Its
    inverse is the scaling factor of latent diffusion, and is stored with the stage.

    Attributes:
      reconstruction: error of a pixel: "l1", the absolute, or "l2", the squared difference.
      kl_weight: of the KL divergence, >= 0; 1e-6 in the paper.
      gan_weight: of the discriminator, >= 0; 0 trains none.
      gan_start: the first train step with the discriminator, so that it does not judge an
        autoencoder that has learnt nothing yet.
      gan_width: channels of the discriminator's first layer.
      gan_layers: its convolutions of stride 2; a patch has about 3 * 2^gan_layers pixels a side.
    """

    trains: ClassVar[NetworkForm] = AUTOENCODER

    reconstruction: str = "l1"
    kl_weight: float = 1e-6
    gan_weight: float = 0.0
    gan_start: int = 0
    gan_width: int = 64
    gan_layers: int = 3

    def __post_init__(self):
        check_choice("objective.reconstruction", self.reconstruction, RECONSTRUCTIONS)
        check_not_negative(self, "kl_weight", "gan_weight", "gan_start")
        for name in ("gan_width", "gan_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"objective.{name}={getattr(self, name)} must be 1 or more.")
        if not self.gan_weight:
            reason = "objective.gan_weight is 0"
            check_unused(self, reason, "gan_start", "gan_width", "gan_layers")

    @property
    def updates(self) -> tuple[Update, ...]:
        """The autoencoder's at every step, then the discriminator's from `gan_start` on."""
        own = Update("student", self.loss)
        if not self.gan_weight:
            return (own,)
        return own, Update("discriminator", self.discriminator_loss, first=self.gan_start)

    @property
    def requires(self) -> Requirements:
        """The images of the data."""
        return Requirements(images="it learns to reconstruct the images of the data")

    @property
    def auxiliaries(self) -> Mapping[str, Auxiliary]:
        """The discriminator, if in use."""
        if not self.gan_weight:
            return {}
        module = PatchDiscriminator(self.gan_width, self.gan_layers)
        return {"discriminator": Auxiliary(_DISCRIMINATOR, module)}

    @property
    def diagnostics(self) -> Diagnostics:
        """PSNR, KL divergence, and the spread of latents with the scaling factor.

        The best checkpoint is that of the lowest reconstruction error, because the discriminator's
        part of the loss is no quality.
        """
        measures = Measures(measure_images, stored_numbers)
        return Diagnostics("reconstruction_error", autoencoder_alarms, measures=measures)

    def dynamic_hparams(self) -> Mapping[str, int | float]:
        """The weight of the KL divergence."""
        return {"kl_weight": self.kl_weight}

    def inert_hparams(self) -> tuple[str, ...]:
        """The discriminator's, without one."""
        return () if self.gan_weight else ("gan_start", "gan_width", "gan_layers")

    def prepare(self, facts: StageFacts) -> Self:
        """Checks that the discriminator starts before the stage ends.

        Raises:
          ConfigError: it does not, or the images are smaller than its patches.
        """
        if self.gan_weight and self.gan_start >= facts.steps > 0:
            raise ConfigError(
                f"objective.gan_start={self.gan_start} is not below the {facts.steps} steps of the "
                "stage, so that the discriminator is never used. Lower it, or set gan_weight=0."
            )
        side = min(facts.image_shape[:2])
        if self.gan_weight and 0 < side < 2**self.gan_layers:
            raise ConfigError(
                f"objective.gan_layers={self.gan_layers} needs images of {2**self.gan_layers} "
                f"pixels a side, and these have {side}. Set it to {side.bit_length() - 1} or less."
            )
        return self

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics, LossAux]:
        """The loss of every image, PSNR in dB, KL in nats a latent dimension, latents' spread."""
        network = networks["student"]
        moments = network.encode(batch.image)
        mean, log_variance = gaussian(moments)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(batch.key("latent"))
        latents = draw(moments, noise)
        image = network.decode(latents)
        error = pixel_error(self.reconstruction, image, batch.image)
        divergence = kl_divergence(mean, log_variance)
        dimensions, values = divergence[0].size, batch.image[0].size
        kl = jnp.mean(divergence, axis=(1, 2, 3))
        total = error + hparam(self, "kl_weight", tables) * kl * (dimensions / values)
        metrics = {
            "reconstruction_error": jnp.mean(error),
            PSNR: jnp.mean(psnr(image, batch.image)),
            KL: jnp.mean(kl),
            LATENT_STD: jnp.std(latents),
        }
        if not self.gan_weight:
            return total, metrics, LossAux()
        started = tables.step >= self.gan_start
        verdict = -jnp.mean(networks["discriminator"](image), axis=(1, 2, 3))
        total = total + jnp.where(started, self.gan_weight, 0.0) * verdict
        return total, metrics, LossAux(shared={"image": jax.lax.stop_gradient(image)})

    def discriminator_loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[PerExample, Metrics]:
        """The hinge loss of the step's reconstructions against their images."""
        del tables
        discriminate = networks["discriminator"]
        real, fake = discriminate(batch.image), discriminate(batch.shared["image"])
        hinge = 0.5 * (jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake))
        metrics = {"logit_real": jnp.mean(real), "logit_fake": jnp.mean(fake)}
        return jnp.mean(hinge, axis=(1, 2, 3)), metrics


# (metric, alarm, below or above, threshold, threshold of a fatal alarm, meaning)
_LIMITS = (
    (KL, "collapse", -1, 0.02, 1e-4, "nats a latent dimension: latents say little of their images"),
    (LATENT_STD, "spread", 1, 100.0, 1e4, "is the spread of latents: raise objective.kl_weight"),
)
# Fresh weights may give latents near the standard normal.
_AT_BIRTH = ("collapse",)
# Of a discriminator that is trained by the hinge loss, which is 0 for a gap of 2.
LOGIT_GAP = 10.0


def autoencoder_alarms(means: Mapping[str, float]) -> tuple[Alarm, ...]:
    """The alarms of `Autoencoder`; a metric that is missing raises none."""
    found = []
    for metric, name, sign, limit, fatal, meaning in _LIMITS:
        value = means.get(metric)
        if value is not None and sign * (value - limit) > 0:
            text = f"{metric} {value:.3g} {meaning} ({'above' if sign > 0 else 'below'} {limit:g})"
            found.append(Alarm(name, text, sign * (value - fatal) > 0, name in _AT_BIRTH))
    gap = means.get("logit_real", 0.0) - means.get("logit_fake", 0.0)
    if gap > LOGIT_GAP:
        text = (
            f"the discriminator tells images from reconstructions by {gap:.3g} logits (above "
            f"{LOGIT_GAP:g}): its gradient says little. Lower its learning rate"
        )
        found.append(Alarm("discriminator", text))
    return tuple(found)


def pixel_error(kind: str, image: Images, wanted: Images) -> PerExample:
    """Mean absolute ("l1") or squared ("l2") error over the pixels and channels of an image."""
    apart = image - wanted
    return jnp.mean(jnp.abs(apart) if kind == "l1" else jnp.square(apart), axis=(1, 2, 3))


def psnr(image: Images, wanted: Images) -> PerExample:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]; 106 dB at most."""
    error = jnp.maximum(pixel_error("l2", image, wanted), _LEAST_ERROR)
    return 10.0 * jnp.log10(4.0 / error)


def kl_divergence(mean: Images, log_variance: Images) -> Images:
    """KL divergence of every dimension's Gaussian from the standard normal, in nats."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


def measure_images(network: BoundAutoencoder, images: Images) -> dict[str, PerExample]:
    """Numbers of single images, of which `stored_numbers` makes those of a data set.

    Args:
      network: the autoencoder.
      images: `[B, H, W, C]` in [-1, 1].
    """
    moments = network.encode(images)
    mean, log_variance = gaussian(moments)
    rebuilt = jnp.clip(network.decode(mean), -1.0, 1.0)
    axes = (1, 2, 3)
    return {
        PSNR: psnr(rebuilt, images),
        KL: jnp.mean(kl_divergence(mean, log_variance), axis=axes),
        "latent_mean": jnp.mean(mean, axis=axes),
        # The mean square of all draws.
        "latent_square": jnp.mean(jnp.square(mean) + jnp.exp(log_variance), axis=axes),
    }


def stored_numbers(means: Mapping[str, float]) -> dict[str, float]:
    """PSNR of reconstructions from means, KL, spread of latents and the scaling factor.

    Args:
      means: of `measure_images`, over the images of a data set.
    """
    variance = means["latent_square"] - means["latent_mean"] ** 2
    spread = max(variance, 1e-12) ** 0.5
    return {
        PSNR: means[PSNR],
        KL: means[KL],
        "latent_mean": means["latent_mean"],
        LATENT_STD: spread,
        SCALING: 1.0 / spread,
    }
