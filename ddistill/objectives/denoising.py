"""Denoising: how a teacher learns from data.

Draw a level t and noise, and regress the clean image (or eps, or v) from z_t = alpha x + sigma eps
(DDPM, arXiv 2006.11239 eq. 14).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from ddistill.diffusion import WEIGHTS
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.distances import ERRORS, PredictionDistance
from ddistill.objectives.distillation import Distillation
from ddistill.objectives.inputs import Batch
from ddistill.objectives.parts import NetworkFacts
from ddistill.objectives.sampling import LAWS
from ddistill.typing import Labels


@dataclass(frozen=True)
class Denoising(Distillation):
    """Trains a denoiser on data.

    With `classifier_weight` above 0 the predicted clean image is also compared with the image of
    the data in a classifier's features.

    Attributes:
      error: quantity whose squared error is taken: "x0", "eps" or "v".
      weight: of a noise level: "uniform", "snr", "truncated_snr", "min_snr" or "edm".
      min_snr_gamma: bound of "min_snr".
      label_dropout: share of examples whose class is replaced by the null class, for guidance.
      null_class: id of the null class, which is the network's number of classes.
      levels: how noise levels are drawn: "uniform" over the table, or "lognormal" (EDM).
    """

    classifier_target: ClassVar[str] = "data"
    reports_data_error: ClassVar[bool] = True

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

    def distances(self) -> Mapping[str, tuple[str, PredictionDistance]]:
        """The error against the data."""
        distance = PredictionDistance(self.error, self.weight, gamma=self.min_snr_gamma)
        return {"data": ("data", distance)}

    @property
    def level_law(self) -> str:
        """As set."""
        return self.levels

    def condition(self, batch: Batch) -> Labels | None:
        """The classes, a share of them replaced by the null class."""
        if batch.cond is None or self.label_dropout == 0.0:
            return batch.cond
        keys = batch.key("label_dropout")
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, self.label_dropout))(keys)
        return jnp.where(drop, self.null_class, batch.cond)

    @property
    def null_class_share(self) -> float:
        """The share of dropped labels."""
        return self.label_dropout

    def prepare_networks(self, facts: NetworkFacts) -> Self:
        """Refuses label dropout to anything but the null class."""
        known = facts.num_classes
        if known and self.label_dropout and self.null_class != known:
            raise ConfigError(
                f"objective.null_class={self.null_class}, but the null class of a network with "
                f"{known} classes is {known}; a dropped label would be another class."
            )
        return self
