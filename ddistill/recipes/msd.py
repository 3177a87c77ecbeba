"""MSD's stages (arXiv 2410.23274): TSM for smaller students, distribution matching, adversarial."""

import dataclasses
from typing import Any

from ddistill.recipes.common import Options, objective
from ddistill.settings import GridSettings, StageSettings, StudentsSettings


def pairs_stage(
    pairs: int,
    batch_size: int,
    steps: int,
    *,
    sampler: str = "heun",
    spacing: str = "trailing",
    **changes: Any,
) -> StageSettings:
    """A set of (noise, label, image) that the stage "teacher" generates for all students.

    Args:
      pairs: number of pairs, a multiple of `batch_size`.
      batch_size: number of pairs generated at once.
      steps: of the sampler.
      sampler: name of a deterministic sampler.
      spacing: of the sampler's levels, "edm" for EDM's own sigmas.
      **changes: further fields of `StageSettings`.
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
    network: Options, prediction: str, *, loss: Options | None = None, **stage: Any
) -> StageSettings:
    """A smaller student trained on the teacher's predictions, from which all students can start.

    Args:
      network, prediction: of the student.
      loss: hyperparameters of `ddistill.objectives.o2mkd.TSM`.
      **stage: fields of `StageSettings`; `steps` and `batch_size` are required.
    """
    return StageSettings(
        objective=objective("tsm", **(loss or {})),
        teacher="teacher",
        network=network,
        prediction=prediction,
        conditional=True,
        **stage,
    )


def msd(
    count: int,
    *,
    name: str = "",
    dm: Options | None = None,
    adm: Options | None = None,
    second: Options | None = None,
    **stage: Any,
) -> dict[str, StageSettings]:
    """Stages of K one-step students of the stage "teacher", each for a group of classes or texts.

    "dm{name}_k{count}" matches distributions. "adm{name}_k{count}" continues its training, with
    the same fake denoiser and optimiser states, and adds a discriminator. Objectives with a
    regression weight read the pairs of the stage "pairs".

    Args:
      count: K.
      name: suffix of the stages' names.
      dm, adm: name and hyperparameters of the objectives; "dmd" and "dmd2" by default.
      second: fields in which the second stage differs from the first, such as `steps`; None for
        no second stage.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required.
        `students` is a mapping of fields of `StudentsSettings`. `init` is "teacher" by default.
    """
    students = {"count": count, "partition": "classes", **stage.pop("students", {})}
    matching = objective(**{"name": "dmd", **(dm or {})})
    first = StageSettings(
        objective=matching,
        teacher="teacher",
        pairs=_pairs(matching),
        conditional=True,
        grid=GridSettings(steps=1),
        students=StudentsSettings(**students),
        method="msd_dm",
        **{"init": "teacher", **stage},
    )
    stages = {f"dm{name}_k{count}": first}
    if second is not None:
        adversarial = objective(**{"name": "dmd2", **(adm or {})})
        stages[f"adm{name}_k{count}"] = dataclasses.replace(
            first,
            objective=adversarial,
            pairs=_pairs(adversarial),
            init="fresh",
            resume=f"dm{name}_k{count}",
            method="msd_adm",
            **second,
        )
    return stages


def _pairs(matching: Options) -> str:
    return "pairs" if matching["regression_weight"] else ""
