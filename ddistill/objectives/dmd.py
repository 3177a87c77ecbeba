"""DMD: one-step students by distribution matching and regression on pairs (arXiv 2311.18828)."""

from dataclasses import dataclass

from ddistill.objectives.matching.losses import Matching


@dataclass(frozen=True)
class DMD(Matching):
    """DMD (arXiv 2311.18828): distribution matching, with a regression on pairs of weight 0.25.

    As in the paper, the fake score has one update per update of the student. In MSD
    (arXiv 2410.23274) it is the stage DM.
    """

    regression_weight: float = 0.25
