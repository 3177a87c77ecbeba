"""Distances between what a student predicts and what it should predict, one value per example.

Predictions at one noisy image are compared in x0, eps, v or flow with a weight per noise level,
images in pixels or in the features of a classifier, hidden activations tap by tap. The level
weights are the ones of progressive distillation (truncated SNR, arXiv 2202.00512 section 4),
min-SNR-gamma (arXiv 2303.09556 eq. 7) and EDM (arXiv 2206.00364, table 1). All of them are stated
for the squared error of x0 and converted to the quantity that is compared.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.diffusion import Prediction, error_weight, output_of
from ddistill.schedules import Level, snr
from ddistill.typing import Features, Images, PerExample

ERRORS = ("x0", "eps", "v", "flow")
NORMS = ("l1", "l2")
REGRESSIONS = ("l2", "pseudo_huber", "classifier")
# Improved consistency training's constant, times the root of the number of values (arXiv
# 2310.14189 section 3.3).
HUBER = 0.00054

# Images in [-1, 1] -> (logits `[B, K]`, features `[B, D]`).
ClassifierLike = Callable[[Images], tuple[Float[Array, "B K"], Float[Array, "B D"]]]


def mean_per_example(values: Float[Array, "B ..."]) -> PerExample:
    """Mean over all axes but the first."""
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


@dataclass(frozen=True)
class PredictionDistance:
    """A distance of two predictions at one noisy image.

    Attributes:
      error: the quantity compared: "x0", "eps", "v" or "flow" (eps - x0).
      weight: of a noise level, for the norm "l2". "uniform" leaves the error as it is; the other
        names weight the x0 error and are divided by |error|^2 / |x0 error|^2, so that the choice of
        `error` is only one of numerics.
      norm: "l2", the mean squared difference; "l1", the mean absolute one; "pseudo_huber" and
        "pixel_huber", see `pseudo_huber`.
      huber: the constant of these two.
      gamma: the bound of the weight "min_snr".
    """

    error: str
    weight: str = "uniform"
    norm: str = "l2"
    gamma: float = 5.0
    huber: float = HUBER

    def __call__(
        self, prediction: Prediction, target: Prediction, z: Images, level: Level
    ) -> PerExample:
        """Returns the distance per example at the noisy images `z` of the levels `level`, `[B]`."""
        ours, theirs = (output_of(self.error, p, z, level) for p in (prediction, target))
        if self.norm == "l1":
            return mean_per_example(jnp.abs(ours - theirs))
        if self.norm in ("pseudo_huber", "pixel_huber"):
            return pseudo_huber(ours - theirs, self.huber, self.norm == "pixel_huber")
        squared = mean_per_example(jnp.square(ours - theirs))
        if self.weight == "uniform":
            return squared
        weight = error_weight(self.weight, level, gamma=self.gamma)
        relative = _relative_to_x0(self.error, level)
        if self.error != "eps":
            return squared * weight / relative
        # At a level without an image eps is known and says nothing of x0, which is compared there.
        x0 = mean_per_example(jnp.square(prediction.x0 - target.x0))
        gone = relative == 0
        return weight * jnp.where(gone, x0, squared / jnp.where(gone, 1.0, relative))


def _relative_to_x0(error: str, level: Level) -> Float[Array, "*B"]:
    """The squared error of x0, eps, v or flow over that of x0, of predictions at one z."""
    alpha, sigma = level.alpha, level.sigma
    if error == "v":
        return (1.0 + snr(level)) * (jnp.square(alpha) + jnp.square(sigma))
    if error == "flow":
        return jnp.square(1.0 + alpha / sigma)
    return snr(level) if error == "eps" else jnp.ones_like(alpha)


def feature_distance(student: Features, teacher: Features, norm: str = "l2") -> PerExample:
    """Distance of hidden features, the mean over each tap's values, summed over taps.

    Args:
      student, teacher: features `[B, h, w, D]` by tap, of equal shapes.
      norm: "l2" for the squared difference, "l1" for the absolute one.
    """

    def error(tap: str) -> PerExample:
        # Features may be bfloat16; a loss is not.
        difference = student[tap].astype(jnp.float32) - teacher[tap].astype(jnp.float32)
        return mean_per_example(jnp.abs(difference) if norm == "l1" else jnp.square(difference))

    return jnp.sum(jnp.stack([error(tap) for tap in teacher]), axis=0)


def feature_divergence(
    features: Float[Array, "B D"], wanted: Float[Array, "B D"], tau: float
) -> PerExample:
    """KL(softmax(wanted / tau) || softmax(features)), summed over channels; at least 0.

    arXiv 2211.12039, with the released code's temperature on the target's side only.
    """
    target = jax.nn.log_softmax(wanted.astype(jnp.float32) / tau)
    student = jax.nn.log_softmax(features.astype(jnp.float32))
    return jnp.sum(jnp.exp(target) * (target - student), axis=-1)


def class_terms(logits: Float[Array, "B K"]) -> tuple[PerExample, PerExample]:
    """(entropy, diversity) per example; both finite for any finite logits.

    The mean entropy is in [0, log K]. The mean of diversity, sum_c p_c log(pbar_c) with pbar the
    mean of p over the batch, is the negative entropy of pbar, in [-log K, 0]; minimising it spreads
    the batch over the classes.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    p = jnp.exp(log_p)
    log_mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(logits.shape[0])
    return -jnp.sum(p * log_p, axis=-1), jnp.sum(p * log_mean, axis=-1)


def regression_distance(
    name: str, image: Images, target: Images, classifier: ClassifierLike | None
) -> PerExample:
    """The distance `name` of two images; 0 where they are equal.

    Args:
      name: "l2", the mean squared error, with which DMD is 0.1 of FID worse than with LPIPS on
        CIFAR-10 (arXiv 2311.18828); "pseudo_huber", sqrt(|d|^2 + c^2) - c over the number of
        values, whose gradient is far smaller than that of "l2" where images are far apart;
        "classifier", the squared distance between features of unit length.
      image: the student's.
      target: the teacher's.
      classifier: images -> (logits, features `[B, D]`), for "classifier".
    """
    if name == "classifier":
        assert classifier is not None, "planning checks that the stage names a classifier"
        ours, theirs = (_unit(classifier(x)[1]) for x in (image, target))
        return jnp.sum(jnp.square(ours - theirs), axis=-1)
    squared = jnp.square(image.astype(jnp.float32) - target.astype(jnp.float32))
    if name == "l2":
        return mean_per_example(squared)
    return pseudo_huber(image.astype(jnp.float32) - target.astype(jnp.float32), HUBER)


def pseudo_huber(
    difference: Float[Array, "B ..."], constant: float, per_pixel: bool = False
) -> PerExample:
    """sqrt(|d|^2 + c^2) - c over the number n of values, with c = constant sqrt(n).

    Its gradient has a length of at most 1 / n (arXiv 2310.14189 section 3.3). `per_pixel` takes it
    of each value, with n = 1, and the mean.
    """
    squared = jnp.square(difference)
    size = 1 if per_pixel else squared[0].size
    if not per_pixel:
        squared = jnp.sum(squared.reshape(len(squared), -1), axis=-1)
    c = constant * size**0.5
    return mean_per_example((_safe_sqrt(squared + c * c) - c) / size)


def _safe_sqrt(x: Array) -> Array:
    """The square root, with gradient 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _unit(features: Float[Array, "B D"]) -> Float[Array, "B D"]:
    features = features.astype(jnp.float32)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-6)
