"""DisBack (arXiv 2408.15991): distribution matching that walks a degradation path backwards."""

import dataclasses
from typing import Any

from ddistill.errors import ConfigError
from ddistill.recipes.common import Options, objective
from ddistill.settings import GridSettings, StageSettings


def disback(
    nodes: int,
    *,
    interval: int = 0,
    path: Options | None = None,
    loss: Options | None = None,
    name: str = "disback",
    **stage: Any,
) -> dict[str, StageSettings]:
    """The degradation of the stage "teacher", and a one-step student that follows it backwards.

    Stage "path" trains a copy of the teacher on images of the untrained student, the teacher in one
    step, and keeps `nodes` checkpoints at even distances. The student has the last checkpoint as
    its first teacher, for `interval` steps, and the one before it as its second; its last teacher
    is "teacher", for `steps` steps. Its fake denoiser starts as the last checkpoint. Each of these
    is a stage that continues the one before it; the last one is called `name`.

    Without nodes there is no path, and the one stage is DMD2.

    Args:
      nodes: P, the number of checkpoints on the path.
      interval: train steps with each checkpoint as the teacher.
      path: fields of the stage "path": `steps`, a multiple of `nodes`, `batch_size`, `optimizer`.
      loss: hyperparameters of the objective, that of DMD2.
      name: of the student's last stage, and prefix of the others.
      **stage: fields of `StageSettings` of the student; `steps`, `batch_size` and `optimizer` are
        required. `method` is "disback" by default.

    Raises:
      ConfigError: `init` or `resume` beside a path, which begins at the teacher.
    """
    last = StageSettings(
        objective=objective("dmd2", **(loss or {})),
        teacher="teacher",
        grid=GridSettings(steps=1),
        **{"init": "teacher", "method": "disback", **stage},
    )
    if not nodes:
        return {name: last}
    for key in ("init", "resume"):
        if key in stage:
            raise ConfigError(
                f"disback: {key}={stage[key]!r} with nodes={nodes}: the path is of the untrained "
                "student, which is the teacher in one step. Leave it out, or set nodes=0."
            )
    degradation = StageSettings(
        objective=objective("degradation"),
        teacher="teacher",
        init="teacher",
        **{"ema": (), "shared": last.shared, **(path or {})},
    )
    every = degradation.steps // nodes
    stages = {"path": dataclasses.replace(degradation, keep_every=every)}
    before = ""
    for node in range(nodes, -1, -1):
        key = f"{name}_{node}" if node else name
        # The student starts from the stage called "teacher", whichever checkpoint teaches it.
        changes: dict[str, Any] = {"init": "teacher@last"}
        if before:
            # The walk warms up once.
            steady = dataclasses.replace(last.optimizer, warmup=0)
            changes = {"init": "fresh", "resume": before, "optimizer": steady, "ema_warmup": False}
        if node:
            changes |= {"teacher": f"path@{node * every}", "steps": interval, "method": ""}
        stages[key] = dataclasses.replace(last, **changes)
        before = key
    return stages
