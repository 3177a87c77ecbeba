"""What every recipe uses: settings spelt out in full, and the shape of a teacher's stage."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ddistill import networks
from ddistill.errors import ConfigError
from ddistill.objectives import hyperparameters
from ddistill.settings import OptimizerSettings, Settings, StageSettings


def to_config(settings: Settings) -> ConfigDict:
    """The settings as an `ml_collections.ConfigDict`, which command-line flags can override."""
    return ConfigDict(dataclasses.asdict(settings))


def objective(name: str, **changes: Any) -> dict[str, Any]:
    """An objective's name and all of its hyperparameters, some of them changed."""
    return {"name": name, **hyperparameters(name), **changes}


def network(name: str, **changes: Any) -> dict[str, Any]:
    """A network's name and all of its options, some of them changed."""
    return {"name": name, **networks.defaults(name), **changes}


def teacher_stage(
    net: Mapping[str, Any],
    steps: int,
    batch_size: int,
    *,
    optimizer: OptimizerSettings,
    prediction: str = "v",
    error: str = "v",
    weight: str = "uniform",
    **changes: Any,
) -> StageSettings:
    """A diffusion teacher trained on every level of the schedule; shared between runs."""
    return StageSettings(
        objective=objective("denoising", error=error, weight=weight),
        network=net,
        prediction=prediction,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        shared=True,
        **changes,
    )


def edm_denoising(num_classes: int) -> dict[str, Any]:
    """EDM's training of a conditional teacher (arXiv 2206.00364) that can be guided afterwards.

    A tenth of the labels is dropped (arXiv 2207.12598).
    """
    return objective(
        "denoising",
        error="x0",
        weight="edm",
        levels="lognormal",
        label_dropout=0.1,
        null_class=num_classes,
    )


def check_variant(variant: str, allowed: Sequence[str] = ("", "smoke")) -> None:
    """Raises `ConfigError` unless `variant`, the part after the colon, is one of `allowed`."""
    if variant not in allowed:
        names = ", ".join(f"':{v}'" for v in allowed if v)
        raise ConfigError(f"Variant ':{variant}' is not known. Allowed: {names}, or none.")
