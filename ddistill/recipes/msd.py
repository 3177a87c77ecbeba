"""MSD's stages (arXiv 2410.23274): TSM for smaller students, distribution matching, adversarial."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddistill.recipes.common import objective
from ddistill.settings import GridSettings, OptimizerSettings, StageSettings, StudentsSettings


def pairs_stage(
    pairs: int,
    batch_size: int,
    steps: int,
    *,
    sampler: str = "heun",
    spacing: str = "trailing",
    **changes: Any,
) -> StageSettings:
    """A set of (noise, label, image of the stage "teacher"), which all students share.

    Args:
      pairs: their number.
      batch_size: how many are made at once.
      steps: of the sampler.
      sampler: a deterministic one.
      spacing: of its levels, "edm" for EDM's own sigmas.
      **changes: further settings of the stage.
    """
    return StageSettings(
        objective=objective("pairs", sampler=sampler),
        teacher="teacher",
        grid=GridSettings(steps=steps, spacing=spacing),
        steps=pairs // batch_size,
        batch_size=batch_size,
        **changes,
    )


def tsm_stage(
    network: Mapping[str, Any], prediction: str, *, loss: Mapping[str, Any] | None = None, **changes
) -> StageSettings:
    """One smaller student that learns the teacher's predictions, for all students to start from.

    Args:
      network, prediction: the student's.
      loss: hyperparameters of `ddistill.objectives.tsm.TSM`.
      **changes: further settings of the stage; steps and batch_size are needed.
    """
    return StageSettings(
        objective=objective("tsm", **(loss or {})),
        teacher="teacher",
        network=network,
        prediction=prediction,
        conditional=True,
        **changes,
    )


def msd(
    count: int,
    *,
    steps: int,
    batch_size: int,
    optimizer: OptimizerSettings,
    adm_steps: int = 0,
    adm_optimizer: OptimizerSettings | None = None,
    start: str = "teacher",
    pairs: str = "pairs",
    dm: Mapping[str, Any] | None = None,
    adm: Mapping[str, Any] | None = None,
    name: str = "",
    students: Mapping[str, Any] | None = None,
    adm_changes: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, StageSettings]:
    """Stages of K one-step students of the stage "teacher", each for a group of classes.

    "dm{name}_k{count}" matches distributions; "adm{name}_k{count}" goes on from there, its fake
    denoiser and optimisers with it, with a discriminator beside.

    Args:
      count: K.
      steps, adm_steps: steps of the two stages; no second one where it is 0. In the second the
        student learns at every `student_every`-th step.
      batch_size: of every student.
      optimizer, adm_optimizer: of all networks; the first again where the second is None.
      start: the stage whose weights the students start from: the teacher, or a `tsm_stage`.
      pairs: the stage that has made the pairs, where `dm` or `adm` uses any.
      dm, adm: an objective's name and hyperparameters; "dmd" and "dmd2" by default.
      name: ends the stages' names.
      students: further settings of `StudentsSettings`.
      adm_changes: further settings of the second stage, such as `optimizers`.
      **changes: further settings of both stages.
    """
    matching = objective(**{"name": "dmd", **(dm or {})})
    first = StageSettings(
        objective=matching,
        teacher="teacher",
        pairs=pairs if matching["regression_weight"] else "",
        init=start,
        conditional=True,
        grid=GridSettings(steps=1),
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        students=StudentsSettings(**{"count": count, "partition": "classes", **(students or {})}),
        method="msd_dm",
        **changes,
    )
    stages = {f"dm{name}_k{count}": first}
    if adm_steps:
        judged = objective(**{"name": "dmd2", **(adm or {})})
        stages[f"adm{name}_k{count}"] = dataclasses.replace(
            first,
            objective=judged,
            pairs=pairs if judged["regression_weight"] else "",
            init="fresh",
            resume=f"dm{name}_k{count}",
            steps=adm_steps,
            optimizer=adm_optimizer or optimizer,
            method="msd_adm",
            **(adm_changes or {}),
        )
    return stages
