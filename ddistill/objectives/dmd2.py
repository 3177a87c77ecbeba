"""DMD2: distribution matching with a discriminator, without pairs (arXiv 2405.14867)."""

from dataclasses import dataclass

from ddistill.objectives.matching.losses import Matching


@dataclass(frozen=True)
class DMD2(Matching):
    """DMD2 (arXiv 2405.14867): distribution matching with a discriminator, without pairs.

    As in the released code, the fake score and the discriminator have five updates per update of
    the student (TTUR). The paper's discriminator is a head on the fake denoiser's middle; weights
    are those of the 64-pixel experiment. FastGen's variant has `features_of="teacher"`,
    `alternate=True` and `fake_weight="uniform"`. In MSD (arXiv 2410.23274) it is the stage ADM.
    """

    gan_weight: float = 3e-3
    discriminator_weight: float = 1e-2
    features_of: str = "fake"
    student_every: int = 5
