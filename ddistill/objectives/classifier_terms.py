"""Distances in a frozen classifier's feature space, for any objective that compares images.

Source: arXiv 2211.12039 (CFD and RCFD). A student's clean image and its target go through the same
classifier; their pooled features, read as the logits of a distribution over channels, are compared
by a Kullback-Leibler divergence, and two terms keep the student on the classes of the data: each
image's prediction confident (entropy), their batch mean spread out (diversity).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.errors import ConfigError
from ddistill.objectives.base import Metrics, Objective, check_not_negative


@dataclass(frozen=True)
class ClassifierTerms(Objective):
    """Hyperparameters of the classifier's distance; objectives that offer it derive from this.

    Attributes:
      classifier_weight: weight of everything here; 0 leaves the classifier out.
      tau: temperature of the target's features alone; below 1 it sharpens them, and a student that
        equals its target is then no longer the optimum, which lies at features / tau.
      beta: weight of the terms on the predicted classes, relative to the features' (RCFD; the
        released code calls it alpha).
      gamma: share of the entropy among them; the rest is diversity (released code: beta).
    """

    classifier_weight: float = 0.0
    tau: float = 0.9
    beta: float = 0.0
    gamma: float = 0.75

    def __post_init__(self):
        check_not_negative(self, "classifier_weight", "beta")
        if not self.tau > 0:
            raise ConfigError(f"objective.tau={self.tau!r} must be above 0.")
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"objective.gamma={self.gamma!r} is a share; allowed: 0 to 1.")

    @property
    def needs_classifier(self) -> bool:
        """Whether the losses read networks["classifier"]."""
        return self.classifier_weight > 0

    @property
    def needs_whole_batch(self) -> bool:
        """The diversity term is a function of the batch's mean prediction."""
        return self.needs_classifier and self.beta > 0 and self.gamma < 1

    def classifier_distance(
        self,
        classifier: Any,
        student: Float[Array, "B H W C"],
        target: Float[Array, "B H W C"],
    ) -> tuple[Float[Array, " B"], Metrics]:
        """The terms per example, not yet multiplied by `classifier_weight`, and their means.

        Args:
          classifier: images in [-1, 1] -> (logits `[B, K]`, features `[B, D]`).
          student: the student's clean images, not clipped.
          target: those that it should have made; a constant.
        """
        _, wanted = jax.lax.stop_gradient(classifier(target))
        logits, features = classifier(student)
        values = feature_divergence(features, wanted, self.tau)
        metrics = {"classifier_distance": jnp.mean(values)}
        if self.beta:
            entropy, diversity = class_terms(logits)
            values = values + self.beta * (self.gamma * entropy + (1.0 - self.gamma) * diversity)
            metrics |= {"entropy": jnp.mean(entropy), "diversity": jnp.mean(diversity)}
        return values, metrics


def feature_divergence(
    features: Float[Array, "B D"], wanted: Float[Array, "B D"], tau: float
) -> Float[Array, " B"]:
    """KL(softmax(wanted / tau) || softmax(features)), summed over channels; at least 0.

    arXiv 2211.12039, with the released code's temperature on the target's side only.
    """
    target = jax.nn.log_softmax(wanted.astype(jnp.float32) / tau)
    student = jax.nn.log_softmax(features.astype(jnp.float32))
    return jnp.sum(jnp.exp(target) * (target - student), axis=-1)


def class_terms(logits: Float[Array, "B K"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """(entropy, diversity) per example; both finite for any finite logits.

    The mean entropy is in [0, log K]. The mean of diversity, sum_c p_c log(pbar_c) with pbar the
    mean of p over the batch, is the negative entropy of pbar, in [-log K, 0]; making it small
    spreads the batch over the classes.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    p = jnp.exp(log_p)
    log_mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(logits.shape[0])
    return -jnp.sum(p * log_p, axis=-1), jnp.sum(p * log_mean, axis=-1)
