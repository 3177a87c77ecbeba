"""Objectives: one file a method. A new method is added to `OBJECTIVES` and nowhere else."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from ddistill.errors import ConfigError, check_choice, nearest
from ddistill.objectives.autoencoder import Autoencoder
from ddistill.objectives.base import Objective
from ddistill.objectives.boot import BOOT
from ddistill.objectives.catch_up import CatchUp
from ddistill.objectives.classification import Classification
from ddistill.objectives.consistency import CD, CT
from ddistill.objectives.degradation import Degradation
from ddistill.objectives.denoising import Denoising
from ddistill.objectives.dmd import DMD
from ddistill.objectives.dmd2 import DMD2
from ddistill.objectives.inputs import Batch, LevelTables, make_level_tables
from ddistill.objectives.ladd import LADD
from ddistill.objectives.meanflow import MeanFlow
from ddistill.objectives.o2mkd import O2MKD, TSM
from ddistill.objectives.pairs import MakePairs
from ddistill.objectives.parts import Update
from ddistill.objectives.pid import PID
from ddistill.objectives.progressive import Progressive
from ddistill.objectives.rcm import RCM
from ddistill.objectives.rdd import RDD
from ddistill.objectives.rotation import Rotation
from ddistill.objectives.scm import SCM
from ddistill.objectives.sfd import SFD
from ddistill.objectives.sfddm import SFDDM
from ddistill.objectives.shortcut import Shortcut
from ddistill.parsing import convert, to_plain

OBJECTIVES: dict[str, type[Objective]] = {
    "autoencoder": Autoencoder,
    "degradation": Degradation,
    "denoising": Denoising,
    "dmd": DMD,
    "dmd2": DMD2,
    "ladd": LADD,
    "boot": BOOT,
    "catch_up": CatchUp,
    "classification": Classification,
    "cd": CD,
    "ct": CT,
    "meanflow": MeanFlow,
    "o2mkd": O2MKD,
    "pairs": MakePairs,
    "pid": PID,
    "progressive": Progressive,
    "rcm": RCM,
    "rdd": RDD,
    "rotation": Rotation,
    "scm": SCM,
    "sfd": SFD,
    "sfddm": SFDDM,
    "shortcut": Shortcut,
    "tsm": TSM,
}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "LevelTables",
    "Objective",
    "Update",
    "hyperparameters",
    "make_level_tables",
    "make_objective",
]


def hyperparameters(name: str) -> dict[str, Any]:
    """The hyperparameters of the objective `name` and their defaults.

    Raises:
      ConfigError: there is no such objective.
    """
    check_choice("objective.name", name, OBJECTIVES)
    fields = dataclasses.fields(OBJECTIVES[name])
    return {f.name: f.default for f in fields if "filled_in" not in f.metadata}


def make_objective(settings: Mapping[str, Any], path: str = "objective") -> Objective:
    """Builds the objective `settings["name"]` with the other entries as hyperparameters.

    Args:
      settings: name and hyperparameters.
      path: dotted name of the settings, for messages.

    Raises:
      ConfigError: an unknown name or hyperparameter, with the nearest match, or a value of another
        type or that the objective refuses.
    """
    options = dict(settings)
    if "name" not in options:
        raise ConfigError(f"{path}.name is missing. Allowed: {', '.join(sorted(OBJECTIVES))}.")
    name = options.pop("name")
    check_choice(f"{path}.name", name, OBJECTIVES)
    known = hyperparameters(name)
    for key in options:
        if key not in known:
            raise ConfigError(
                f"{path}.{key} is not a setting of '{name}'.{nearest(key, known)} "
                f"Known: {', '.join(sorted(known))}."
            )
    hints = typing.get_type_hints(OBJECTIVES[name])
    values = {k: convert(to_plain(v), hints[k], f"{path}.{k}") for k, v in options.items()}
    try:
        return OBJECTIVES[name](**values)
    except ConfigError as error:  # which begins with "objective", not knowing the stage
        raise ConfigError(f"{path}{str(error).removeprefix('objective')}") from None
