"""Denoising: how a teacher learns from data.

Draw a level t and noise, and regress the clean image (or eps, or v) from z_t = alpha x + sigma eps
(DDPM, arXiv 2006.11239 eq. 14). The weights are those of progressive distillation (truncated SNR,
arXiv 2202.00512 section 4), min-SNR-gamma (arXiv 2303.09556 eq. 7) and EDM (arXiv 2206.00364,
table 1); all of them are stated for the squared error of x0 and carried over to the error that the
loss is written in.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddistill.diffusion import Prediction, add_noise, error_weight, output_of
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import Metrics, Networks, Update
from ddistill.objectives.classifier_terms import ClassifierTerms
from ddistill.objectives.inputs import Batch, LevelTables
from ddistill.objectives.sampling import LAWS, draw_level, mean_per_example, normal, streams
from ddistill.schedules import Level, snr

ERRORS = ("x0", "eps", "v")
WEIGHTS = ("uniform", "snr", "truncated_snr", "min_snr", "edm")


def weighted_error(
    prediction, target, z: Array, level: Level, error: str, weight: str, gamma: float = 5.0
) -> Float[Array, " B"]:
    """Weighted mean squared error per example between two `Prediction`s at the same z.

    Args:
      prediction: what the network says.
      target: what it should say.
      z: `[B, H, W, C]`, the noisy images both belong to.
      level: their noise levels, `[B]`.
      error: the quantity compared, "x0", "eps" or "v".
      weight: "uniform" leaves that error as it is; the other names weight the x0 error and are
        divided by |error|^2 / |x0 error|^2, so that the choice of `error` is only one of numerics.
      gamma: the bound of "min_snr".
    """
    difference = output_of(error, prediction, z, level) - output_of(error, target, z, level)
    squared = mean_per_example(jnp.square(difference))
    if weight == "uniform":
        return squared
    ratio = snr(level)
    relative = {"x0": jnp.ones_like(ratio), "eps": ratio, "v": 1.0 + ratio}[error]
    return squared * error_weight(weight, level, gamma=gamma) / relative


@dataclass(frozen=True)
class Denoising(ClassifierTerms):
    """Trains a denoiser on data.

    With `classifier_weight` above 0 the predicted clean image is also compared with the image of
    the data in a classifier's features.

    Attributes:
      error: quantity whose squared error is taken: "x0", "eps" or "v".
      weight: "uniform", "snr", "truncated_snr", "min_snr" or "edm".
      min_snr_gamma: bound of "min_snr".
      label_dropout: share of examples whose class is replaced by the null class, for guidance.
      null_class: id of the null class, which is the network's number of classes.
      levels: how noise levels are drawn: "uniform" over the table, or "lognormal" (EDM).
    """

    error: str = "v"
    weight: str = "uniform"
    min_snr_gamma: float = 5.0
    label_dropout: float = 0.0
    null_class: int = -1
    levels: str = "uniform"

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.error", self.error, ERRORS)
        check_choice("objective.weight", self.weight, WEIGHTS)
        check_choice("objective.levels", self.levels, LAWS)
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ConfigError(f"objective.label_dropout={self.label_dropout} is not in [0, 1].")

    def check_classes(self, num_classes: int) -> None:
        """Refuses label dropout to anything but the null class."""
        if self.label_dropout and self.null_class != num_classes:
            raise ConfigError(
                f"objective.null_class={self.null_class}, but the null class of a network with "
                f"{num_classes} classes is {num_classes}; a dropped label would be another class."
            )

    @property
    def updates(self) -> tuple[Update, ...]:
        """One update of the network that is trained."""
        return (Update("student", self.loss),)

    def loss(
        self, networks: Networks, batch: Batch, tables: LevelTables
    ) -> tuple[Float[Array, " B"], Metrics]:
        """Weighted squared error at a level drawn by `draw_level`."""
        index_keys, noise_keys, drop_keys = streams(batch.keys, 3)
        level = tables.student.at(draw_level(index_keys, tables, self.levels))
        noise = normal(noise_keys, batch.image)
        z = add_noise(batch.image, noise, level)
        cond = self._condition(batch, drop_keys)
        prediction = networks["student"](z, level, cond, key=batch.keys[0])
        target = Prediction(x0=batch.image, eps=noise)
        values = weighted_error(
            prediction, target, z, level, self.error, self.weight, self.min_snr_gamma
        )
        x0_error = mean_per_example(jnp.square(prediction.x0 - batch.image))
        metrics = {"x0_mse": jnp.mean(x0_error)}
        if self.classifier_weight:
            distance, found = self.classifier_distance(
                networks["classifier"], prediction.x0, batch.image
            )
            values = values + self.classifier_weight * distance
            metrics |= found
        return values, metrics

    def _condition(self, batch: Batch, keys: Array) -> Array | None:
        if batch.cond is None or self.label_dropout == 0.0:
            return batch.cond
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, self.label_dropout))(keys)
        return jnp.where(drop, self.null_class, batch.cond)
