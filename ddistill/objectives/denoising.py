"""Denoising: how a teacher learns from data.

Draw a level t and noise, and regress the clean image (or eps, or v) from z_t = alpha x + sigma eps
(DDPM, arXiv 2006.11239 eq. 14). On the straight path, schedule "linear_path", the error "flow" is
that of flow matching (arXiv 2210.02747 eq. 23): the velocity is regressed onto eps - x.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import jax
import numpy as np

from ddistill.conditions import Condition, replace_where
from ddistill.diffusion import WEIGHTS
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import check_dropout, check_unused
from ddistill.objectives.distances import ERRORS, PredictionDistance
from ddistill.objectives.distillation import Distillation
from ddistill.objectives.inputs import Batch
from ddistill.objectives.parts import StageFacts
from ddistill.objectives.sampling import LAWS, Law

# Laws of t = sigma / (alpha + sigma), beside `LAWS`.
FLOW_LAWS = ("logit_normal", "shifted")


@dataclass(frozen=True)
class Denoising(Distillation):
    """Trains a denoiser on data.

    With `classifier_weight` above 0 the predicted clean image is also compared with the image of
    the data in a classifier's features.

    Attributes:
      error: quantity whose squared error is taken: "x0", "eps", "v" or "flow" (eps - x0).
      weight: of a noise level: "uniform", "snr", "truncated_snr", "min_snr" or "edm".
      min_snr_gamma: bound of "min_snr".
      label_dropout: share of examples whose class or text is replaced by the null condition, for
        guidance.
      null_class: id of the null class, which is the network's number of classes; texts have the
        empty text in its place.
      levels: how noise levels are drawn: "uniform" over the table, "lognormal" (EDM), or, by
        t = sigma / (alpha + sigma), "logit_normal" or "shifted" (a uniform t). The last two are
        shifted to s t / (1 + (s - 1) t) with s = `time_shift` (arXiv 2403.03206).
      time_mean, time_std: of log(t / (1 - t)) before the shift, for "logit_normal".
      time_shift: s of "logit_normal" and "shifted", above 0; 1 leaves t as it is.
    """

    classifier_target: ClassVar[str] = "data"
    reports_data_error: ClassVar[bool] = True

    error: str = "v"
    weight: str = "uniform"
    min_snr_gamma: float = 5.0
    label_dropout: float = 0.0
    null_class: int = -1
    levels: str = "uniform"
    time_mean: float = 0.0
    time_std: float = 1.0
    time_shift: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_choice("objective.error", self.error, ERRORS)
        check_choice("objective.weight", self.weight, WEIGHTS)
        check_choice("objective.levels", self.levels, (*LAWS, *FLOW_LAWS))
        for name in ("time_std", "time_shift"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise ConfigError(f"objective.{name}={getattr(self, name)} must be above 0.")
        check_unused(self, f"objective.levels is {self.levels!r}", *self._of_other_laws())
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ConfigError(f"objective.label_dropout={self.label_dropout} is not in [0, 1].")

    def distances(self) -> Mapping[str, tuple[str, PredictionDistance]]:
        """The error against the data."""
        distance = PredictionDistance(self.error, self.weight, gamma=self.min_snr_gamma)
        return {"data": ("data", distance)}

    @property
    def level_law(self) -> Law:
        """As set."""
        shift = float(np.log(self.time_shift))
        if self.levels == "logit_normal":
            return Law("lognormal", self.time_mean + shift, self.time_std)
        return Law("loglogistic", shift, 1.0) if self.levels == "shifted" else Law(self.levels)

    def _of_other_laws(self) -> tuple[str, ...]:
        """The hyperparameters of laws that are not in use."""
        if self.levels == "logit_normal":
            return ()
        moments = ("time_mean", "time_std")
        return moments if self.levels == "shifted" else (*moments, "time_shift")

    def inert_hparams(self) -> tuple[str, ...]:
        """The hyperparameters of laws that are not in use."""
        return (*super().inert_hparams(), *self._of_other_laws())

    def condition(self, batch: Batch) -> Condition | None:
        """The conditions, a share of them replaced by the null condition."""
        if batch.cond is None or self.label_dropout == 0.0:
            return batch.cond
        keys = batch.key("label_dropout")
        drop = jax.vmap(lambda key: jax.random.bernoulli(key, self.label_dropout))(keys)
        return replace_where(drop, batch.cond, batch.null_or(self.null_class))

    @property
    def null_class_share(self) -> float:
        """The share of dropped labels."""
        return self.label_dropout

    def prepare(self, facts: StageFacts) -> Self:
        """Refuses label dropout without conditions, and to anything but the null class."""
        known = facts.networks.num_classes
        if known and self.label_dropout and self.null_class != known:
            raise ConfigError(
                f"objective.null_class={self.null_class}, but the null class of a network with "
                f"{known} classes is {known}; a dropped label would be another class."
            )
        check_dropout(self, facts)
        return super().prepare(facts)
