"""Variants that shrink an experiment to seconds, to see that it runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ddistill.settings import Settings, StageSettings


def smoke(settings: Settings, net: Mapping[str, Any], keep: Sequence[str] = ()) -> Settings:
    """The same experiment shrunk to seconds: few steps, a narrow network, few samples.

    Args:
      settings: the full experiment.
      net: options that replace those of every U-Net.
      keep: the stages to keep; all where it is empty.
    """
    names = tuple(keep) or settings.pipeline
    stages = {name: _smoke_stage(settings.stages[name], net) for name in names}
    evaluation = dataclasses.replace(
        settings.evaluation,
        samples=64,
        batch_size=64,
        teacher_samplers={k: tuple(v)[:2] for k, v in settings.evaluation.teacher_samplers.items()},
        full_steps=min(8, settings.evaluation.full_steps or 8),
        grid_images=8,
        strip_images=4,
    )
    training = dataclasses.replace(settings.training, log_every=5, checkpoint_every=10)
    return dataclasses.replace(
        settings,
        name=f"{settings.name}-smoke",
        stages=stages,
        pipeline=names,
        evaluation=evaluation,
        training=training,
    )


def _smoke_stage(stage: StageSettings, net: Mapping[str, Any]) -> StageSettings:
    is_unet = stage.network.get("name") == "unet"
    optimizer = dataclasses.replace(stage.optimizer, warmup=min(2, stage.optimizer.warmup))
    objective_settings = dict(stage.objective)
    if objective_settings.get("substeps", 0) > 2:
        objective_settings["substeps"] = 2
    return dataclasses.replace(
        stage,
        objective=objective_settings,
        network={**stage.network, **(net if is_unet else {})},
        steps=20,
        batch_size=16,
        optimizer=optimizer,
    )


def smoke_on_digits(settings: Settings) -> Settings:
    """`smoke` on the embedded digits, for experiments whose data a visitor may not have."""
    shrunk = smoke(settings, {"channels": 8, "head_dim": 8, "out_channels": 1, "attention": (1,)})
    students = {
        name: dataclasses.replace(stage, grid=dataclasses.replace(stage.grid, steps=4))
        if stage.teacher
        else stage
        for name, stage in shrunk.stages.items()
    }
    evaluation = dataclasses.replace(
        shrunk.evaluation, teacher_samplers={"ddim": (4,)}, full_steps=8
    )
    return dataclasses.replace(
        shrunk, data={"name": "digits"}, stages=students, evaluation=evaluation
    )
