"""Pairs: noise, and where a teacher's deterministic sampler leads from it.

The set that DMD's regression needs (arXiv 2311.18828 section 4.2). Nothing is trained: a stage of
this objective makes `steps * batch_size` pairs on the levels of its grid, whose classes go round.
"""

from dataclasses import dataclass
from typing import ClassVar

from ddistill.errors import ConfigError, check_choice
from ddistill.objectives.base import Objective
from ddistill.objectives.parts import DENOISER, NetworkForm, Requirements, Update

# A stage of pairs has the network of its teacher, and trains none.
PAIRS = NetworkForm("pairs", DENOISER.inputs, DENOISER.bind)
SAMPLERS = ("ddim", "heun", "dpm_solver_pp")


@dataclass(frozen=True)
class MakePairs(Objective):
    """Pairs of noise and the image that a deterministic sampler of the teacher makes of it.

    Attributes:
      sampler: "ddim", "heun" (EDM's, as DMD uses it) or "dpm_solver_pp"; all are deterministic.
      clip: bound on every x0 prediction on the way; 0 for none.
      shard: batches in a file; a run that is stopped loses at most as many.
    """

    trains: ClassVar[NetworkForm] = PAIRS

    sampler: str = "heun"
    clip: float = 0.0
    shard: int = 8

    @property
    def requires(self) -> Requirements:
        """The teacher that makes them."""
        return Requirements(teacher="the teacher makes the pairs", images="")

    def inert_hparams(self) -> tuple[str, ...]:
        """The pairs are the same in shards of any length."""
        return ("shard",)

    def __post_init__(self):
        check_choice("objective.sampler", self.sampler, SAMPLERS)
        if not 0.0 <= self.clip < float("inf"):
            raise ConfigError(f"objective.clip={self.clip} must be 0 (off) or above.")
        if 0 < self.clip < 1:
            raise ConfigError(
                f"objective.clip={self.clip} cuts into images, whose pixels are in [-1, 1]. Set 1 "
                "or above, or 0 (off)."
            )
        if self.shard < 1:
            raise ConfigError(f"objective.shard={self.shard} must be 1 or more.")

    @property
    def updates(self) -> tuple[Update, ...]:
        """None."""
        return ()
