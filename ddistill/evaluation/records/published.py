"""Published FIDs, for the column "paper" of docs/results.md.

Every number is from a paper, from the code or README of its authors, or from a source that quotes
it; `source` says which. The numbers are FIDs of 50 000 samples with the Inception graph. Distances
in other features, or of fewer samples, are not comparable with them.

Data sets have the names of `Row.data`; class-conditional CIFAR-10 is "cifar10_cond".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published FID.

    Attributes:
      method: name of `names.METHODS`; K = 1 of MSD is DMD ("msd_dm") or DMD2 ("msd_adm").
      data: name of the data set.
      nfe: network evaluations per image.
      students: number of students K.
      value: FID.
      source: origin of the number.
    """

    method: str
    data: str
    nfe: int
    students: int
    value: float
    source: str


_PD = "arXiv 2202.00512, as listed by Papers with Code"
_DMD = "arXiv 2311.18828"
_MSD = "arXiv 2410.23274, as quoted in its open reviews"

PUBLISHED: tuple[Published, ...] = (
    Published("pd", "cifar10", 8, 1, 2.57, _PD),
    Published("pd", "cifar10", 4, 1, 3.00, _PD),
    Published("pd", "cifar10", 2, 1, 4.51, _PD),
    Published("pd", "cifar10", 1, 1, 9.12, _PD),
    Published("pd", "imagenet64", 1, 1, 15.39, f"quoted in {_DMD}, table 1"),
    Published("heun", "cifar10_cond", 35, 0, 1.79, "README of the EDM code (arXiv 2206.00364)"),
    Published("msd_dm", "cifar10_cond", 1, 1, 2.66, f"DMD, {_DMD}"),
    Published("msd_dm", "cifar10", 1, 1, 3.77, f"DMD, {_DMD}"),
    Published("msd_dm", "imagenet64", 1, 1, 2.62, f"DMD, {_DMD}"),
    Published("msd_dm", "imagenet64", 1, 4, 2.37, _MSD),
    Published("msd_adm", "imagenet64", 1, 1, 1.28, "DMD2, README of its code (arXiv 2405.14867)"),
    Published("msd_adm", "imagenet64", 1, 4, 1.20, _MSD),
    Published("msd_adm", "cifar10_cond", 1, 1, 1.99, "DMD2 as re-run by FastGen, its README"),
)


def published(method: str, data: str, nfe: int, students: int) -> Published | None:
    """Returns the published FID of a method; None if there is none."""
    for entry in PUBLISHED:
        if (entry.method, entry.data, entry.nfe, entry.students) == (method, data, nfe, students):
            return entry
    return None
