"""Denoising: how a teacher learns from data.

Draw a level t and noise, and regress the clean image (or eps, or v) from z_t = alpha x + sigma eps
(DDPM, arXiv 2006.11239 eq. 14). On the straight path, schedule "linear_path", the error "flow" is
that of flow matching (arXiv 2210.02747 eq. 23): the velocity is regressed onto eps - x.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ddistill.diffusion import WEIGHTS
from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import check_unused
from ddistill.objectives.distances import ERRORS, PredictionDistance
from ddistill.objectives.label_dropout import LabelDropout
from ddistill.objectives.sampling import LAWS, Law

# Laws of t = sigma / (alpha + sigma), beside `LAWS`.
FLOW_LAWS = ("logit_normal", "shifted")


@dataclass(frozen=True)
class Denoising(LabelDropout):
    """Trains a denoiser on data.

    With `classifier_weight` above 0 the predicted clean image is also compared with the image of
    the data in a classifier's features.

    Attributes:
      error: quantity whose squared error is taken: "x0", "eps", "v" or "flow" (eps - x0).
      weight: of a noise level: "uniform", "snr", "truncated_snr", "min_snr" or "edm".
      min_snr_gamma: bound of "min_snr".
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
