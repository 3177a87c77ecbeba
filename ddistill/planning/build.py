"""The settings of a stage with every default filled in, and the network that they describe."""

import dataclasses
from collections.abc import Mapping

from flax import linen as nn

from ddistill import networks
from ddistill.errors import ConfigError, nearest
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


def resolve(context: StageContext) -> StageSettings:
    """The stage's settings with network, prediction type and classes filled in.

    Defaults are those of the imported network or of the teacher. `check_imported` compares the
    settings that the stage gives itself.

    Raises:
      ConfigError: the teacher is not an earlier stage, or there is no network.
    """
    stage, path, imported = context.settings, context.path, context.imported
    if stage.network and "name" not in stage.network:
        raise _nameless(f"{path}.network")
    if stage.teacher:
        check_earlier(f"{path}.teacher", stage.teacher, (), context.earlier)
    if imported is not None:
        return dataclasses.replace(
            stage,
            network=stage.network or imported.network,
            prediction=stage.prediction or imported.prediction,
            conditional=stage.conditional or imported.num_classes > 0,
        )
    if stage.network:
        return dataclasses.replace(stage, prediction=stage.prediction or "eps")
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
    return dataclasses.replace(
        stage,
        network=theirs.network,
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
