"""LADD: a discriminator on the teacher's features, and nothing else (arXiv 2403.12015)."""

from dataclasses import dataclass

from ddistill.objectives.matching.losses import Matching


@dataclass(frozen=True)
class LADD(Matching):
    """LADD (arXiv 2403.12015): a discriminator on the teacher's features, and no other term.

    The real images are those of the data, and both networks learn in every step.

    The paper's discriminator sees every block of a transformer; ours sees the taps of `features`.
    """

    score_weight: float = 0.0
    gan_weight: float = 1.0
    features_of: str = "teacher"
