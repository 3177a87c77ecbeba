"""The settings of a stage with every default filled in, and the network that they describe."""

import dataclasses
from collections.abc import Mapping

from flax import linen as nn

from ddistill import networks
from ddistill.checkpoint_names import checkpoint_named
from ddistill.errors import ConfigError, nearest
from ddistill.objectives import make_objective
from ddistill.parsing import to_plain
from ddistill.planning.context import StageContext
from ddistill.planning.plan import StagePlan
from ddistill.settings import StageSettings


def in_full(network: Mapping[str, object]) -> dict[str, object]:
    """The options of a network that its parameters depend on, with defaults, as plain values."""
    full = to_plain({**networks.defaults(str(network["name"])), **network})
    return {k: v for k, v in full.items() if k not in networks.WITHOUT_PARAMETERS}


def check_earlier(
    key: str, value: str, words: tuple[str, ...], earlier: Mapping[str, StagePlan]
) -> None:
    """Raises `ConfigError` unless `value` is one of `words` or an earlier stage."""
    if value not in (*words, *earlier):
        names = ", ".join([*words, *earlier]) or "nothing, because this stage is the first"
        raise ConfigError(
            f"{key}={value!r} is not a stage before this one in config.pipeline."
            f"{nearest(value, [*words, *earlier])} Allowed: {names}."
        )


def check_checkpoint(
    key: str, value: str, words: tuple[str, ...], earlier: Mapping[str, StagePlan]
) -> None:
    """Raises `ConfigError` unless `value` is one of `words` or names a checkpoint that is kept."""
    name, step = checkpoint_named(value)
    _, mark, text = value.partition("@")
    check_earlier(key, name if mark else value, words if not mark else (), earlier)
    if not mark or text == "last":
        return
    if step is None:
        raise ConfigError(
            f"{key}={value!r}: a step or 'last' has to follow the '@', as in '{name}@last'."
        )
    stage = earlier[name].settings
    kept = [s for s in (*kept_steps(stage), stage.steps) if s]
    if step not in kept:
        nearby = min(kept, key=lambda s: abs(s - step), default="last")
        first = f"multiples of keep_every={stage.keep_every} and " if stage.keep_every else ""
        raise ConfigError(
            f"{key}={value!r}: stage '{name}' keeps no checkpoint of step {step}. It keeps {first}"
            f"its last step, {stage.steps}. Did you mean '{name}@{nearby}'?"
        )


def kept_steps(stage: StageSettings) -> range:
    """The steps of the checkpoints that a stage keeps for others, beside its last one."""
    return (
        range(stage.keep_every, stage.steps + 1, stage.keep_every) if stage.keep_every else range(0)
    )


def resolve(context: StageContext) -> StageSettings:
    """The stage's settings with network, prediction type and classes filled in.

    Defaults are those of the imported network or of the teacher, with the extra inputs that the
    objective gives the student. `check_imported` compares the settings that the stage gives itself.

    Raises:
      ConfigError: the teacher is not an earlier stage, or there is no network.
    """
    stage, path, imported = context.settings, context.path, context.imported
    if stage.network and "name" not in stage.network:
        raise _nameless(f"{path}.network")
    if stage.teacher:
        check_checkpoint(f"{path}.teacher", stage.teacher, (), context.earlier)
    if imported is not None:
        return dataclasses.replace(
            stage,
            network=stage.network or imported.network,
            prediction=stage.prediction or imported.prediction,
            conditional=stage.conditional
            or imported.num_classes > 0
            or networks.reads_text(str(imported.network["name"])),
        )
    if stage.network:
        texts = networks.reads_text(str(stage.network["name"]))
        return dataclasses.replace(
            stage,
            prediction=stage.prediction or "eps",
            conditional=stage.conditional or texts,
        )
    if context.teacher is None:
        raise ConfigError(
            f"{path}.network is empty and there is no teacher to take it from. "
            f"Set {path}.network.name to one of {', '.join(sorted(networks.NETWORKS))}."
        )
    theirs = context.teacher.settings
    if stage.prediction not in ("", theirs.prediction):
        raise ConfigError(
            f"{path}.prediction={stage.prediction!r}, but its network is that of "
            f"'{stage.teacher}', which predicts {theirs.prediction!r}. Leave prediction empty, or "
            f"set {path}.network."
        )
    network = dict(theirs.network)
    extras = tuple(make_objective(stage.objective, f"{path}.objective").extra_inputs)
    network = networks.with_extra_inputs(network, extras)
    return dataclasses.replace(
        stage,
        network=network,
        prediction=theirs.prediction,
        conditional=theirs.conditional,
    )


def build_module(described: Mapping[str, object], path: str) -> nn.Module:
    """Builds the network that settings describe by name and options."""
    options = dict(described)
    if "name" not in options:
        raise _nameless(path)
    return networks.build(str(options.pop("name")), **options)


def _nameless(path: str) -> ConfigError:
    allowed = ", ".join(sorted(networks.NETWORKS))
    return ConfigError(f"{path}.name is missing. Allowed: {allowed}.")
