"""Variants of config files, ":smoke" above all: the experiment shrunk to seconds of training."""

import dataclasses
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from ddistill.checkpoint_names import checkpoint_named
from ddistill.recipes.common import Options, check_variant, to_config
from ddistill.settings import Settings, StageSettings


def digits_config(
    settings: Settings,
    variant: str,
    keep: Sequence[str] = (),
    variants: Sequence[str] = ("", "smoke"),
) -> ConfigDict:
    """The config of an experiment on digits, in a variant.

    Args:
      settings: the full experiment.
      variant: the part after the colon of `--config=FILE:VARIANT`. "smoke" shrinks the experiment.
      keep: stages of the smoke variant; all stages if it is empty.
      variants: the variants of the file.

    Raises:
      ConfigError: the variant is not one of `variants`.
    """
    check_variant(variant, variants)
    if variant == "smoke":
        settings = smoke(settings, {"channels": 8, "head_dim": 8}, keep)
    return to_config(settings, variant)


def image_config(
    settings: Settings, variant: str, *, small: Settings | None = None, levels: int = 4
) -> ConfigDict:
    """The config of an experiment on larger images, in a variant; "smoke" uses the digits.

    Args:
      settings: the full experiment.
      variant: the part after the colon of `--config=FILE:VARIANT`.
      small: an experiment with fewer stages, for the smoke variant to shrink.
      levels: as in `smoke_on_digits`.

    Raises:
      ConfigError: the variant is neither "" nor "smoke".
    """
    check_variant(variant)
    if variant == "smoke":
        settings = smoke_on_digits(small or settings, levels)
    return to_config(settings, variant)


def smoke(settings: Settings, net: Options, keep: Sequence[str] = ()) -> Settings:
    """The same experiment shrunk to seconds: few updates, narrow networks, few samples.

    Args:
      settings: the full experiment.
      net: options that replace the options of every U-Net.
      keep: the stages to keep; all stages if it is empty.
    """
    names = tuple(keep) or settings.pipeline
    stages = {name: _smoke_stage(settings.stages[name], net) for name in names}
    stages = {
        name: dataclasses.replace(
            stage,
            teacher=_smoke_checkpoint(stage.teacher, settings, stages),
            init=_smoke_checkpoint(stage.init, settings, stages),
        )
        for name, stage in stages.items()
    }
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


# Train steps of every stage.
_STEPS = 20
# Two levels and few channels for the classifiers with such options.
_SMALL: dict[str, Options] = {
    "resnet": {"width": 8, "blocks": (1, 1)},
    "densenet": {"growth": 4, "blocks": (2, 2)},
}
# The most of hyperparameters that are counts.
_FEW = {"substeps": 2, "queue_rows": 64, "rows_per_step": 16, "contrast_rows": 32}


def _smoke_checkpoint(text: str, settings: Settings, shrunk: Mapping[str, StageSettings]) -> str:
    """The checkpoint of the same number on the shrunk path, for one at a step of a stage."""
    named = checkpoint_named(text)
    if named.step is None:
        return text
    whole, small = settings.stages[named.stage], shrunk[named.stage]
    if named.step >= whole.steps or not whole.keep_every:
        return str(named._replace(step=small.steps))
    kept = small.steps // small.keep_every
    number = min(named.step // whole.keep_every, kept)
    return str(named._replace(step=number * small.keep_every))


def _smoke_stage(stage: StageSettings, net: Options) -> StageSettings:
    name = str(stage.network.get("name", ""))
    small = net if name == "unet" else _SMALL.get(name, {})
    optimizer = dataclasses.replace(stage.optimizer, warmup=min(2, stage.optimizer.warmup))
    objective_settings = dict(stage.objective)
    for key, most in _FEW.items():
        if objective_settings.get(key, 0) > most:
            objective_settings[key] = most
    grid = stage.grid
    if stage.objective["name"] == "pairs":
        grid = dataclasses.replace(grid, steps=min(4, grid.steps))
    samplers = {name: (min(4, min(counts)),) for name, counts in stage.samplers.items()}
    uses_mid = any(len(stage.mid_levels) + 1 in counts for counts in samplers.values())
    return dataclasses.replace(
        stage,
        objective=objective_settings,
        grid=grid,
        network={**stage.network, **small} if stage.network else stage.network,
        steps=_STEPS,
        keep_every=max(1, _STEPS * stage.keep_every // stage.steps) if stage.keep_every else 0,
        batch_size=16,
        optimizer=optimizer,
        samplers=samplers,
        mid_levels=stage.mid_levels if uses_mid else (),
    )


def smoke_on_digits(settings: Settings, levels: int = 4) -> Settings:
    """`smoke` on the embedded digits, for experiments on data that have to be downloaded.

    Args:
      settings: the full experiment.
      levels: steps of every student; 0 keeps the steps, which a chain of halvings requires.
    """
    options: Options = {
        "channels": 8,
        "head_dim": 8,
        "norm_groups": 4,
        "out_channels": 1,
        "attention": (),
        "multipliers": (1, 2),
    }
    shrunk = smoke(settings, options)
    students = {name: _on_digits(stage, levels) for name, stage in shrunk.stages.items()}
    evaluation = dataclasses.replace(
        shrunk.evaluation, teacher_samplers={"ddim": (4,)}, full_steps=8
    )
    return dataclasses.replace(
        shrunk, data={"name": "digits"}, stages=students, evaluation=evaluation
    )


def _on_digits(stage: StageSettings, levels: int) -> StageSettings:
    network = dict(stage.network)
    if network.get("num_classes"):
        network["num_classes"] = 10
    grid = dataclasses.replace(stage.grid, steps=levels) if stage.teacher and levels else stage.grid
    objective_settings = dict(stage.objective)
    if objective_settings.get("label_dropout"):
        objective_settings["null_class"] = 10
    return dataclasses.replace(stage, network=network, grid=grid, objective=objective_settings)
