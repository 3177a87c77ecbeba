"""Which files of a folder of diffusers are the network, its weights and its scheduler."""

import json
from dataclasses import dataclass
from pathlib import Path

from ddistill.errors import ConfigError
from ddistill.interop.diffusers_weights import (
    WEIGHTS,
    average_folders,
    check_averages,
    find_weights,
    is_average,
)
from ddistill.interop.file_kinds import why_unusable
from ddistill.interop.shards import Index
from ddistill.typing import JsonRecord

CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
# The network of a pipeline; diffusers' training scripts save its average as unet_ema.
PLAIN = "unet"
# The parts of the pipelines that can be read.
_PARTS = (PLAIN, "scheduler")


@dataclass(frozen=True)
class Found:
    """The files of a model.

    Attributes:
      network: the folder with config.json and the weights.
      config: content of config.json.
      scheduler_config: content of scheduler_config.json, with the class that model_index.json
        names where there is one: diffusers makes that class of it.
      scheduler: its path in messages.
      weights: one file, or the shards in the order of their names.
      files: all files that define the model, for a digest.
      taken: the file or index of the weights from the model's folder on, and whether it is the
        average.
      averaged: whether the average was taken where the network may be there too.
      index: the content of the shards' index; None for one file of weights.
    """

    network: Path
    config: JsonRecord
    scheduler_config: JsonRecord
    scheduler: str
    weights: tuple[Path, ...]
    files: tuple[Path, ...]
    taken: str
    averaged: bool
    index: Index | None = None


def find_model(folder: Path) -> Found:
    """The files of the model in a folder.

    The folder is a pipeline (`unet/` and `scheduler/` inside), a checkpoint of a training script
    (`unet/` and `unet_ema/`, of which the average is taken), one of these inner folders, or holds
    the files side by side. A checkpoint has no scheduler; that of the training's folder is taken.
    Of several files of weights `diffusers_weights` says which is taken.

    Raises:
      ConfigError: a file is missing or is no JSON object, the folder holds another pipeline, or it
        is not clear which average of the weights is meant.
    """
    _check_folder(folder)
    parts = _pipeline(_roots(folder))
    network = _network(folder)
    config_path = network / CONFIG
    config = read_json(config_path)
    scheduler = _scheduler(folder, network)
    settings, called = read_json(scheduler), str(scheduler)
    kind = parts.get("scheduler", settings.get("_class_name"))
    if kind != settings.get("_class_name"):
        settings["_class_name"], called = kind, f"{called} (class of {INDEX})"
    weights = find_weights(network, read_json)
    averaged = weights.averaged or (network != folder and is_average(network.name))
    taken = weights.named.relative_to(folder).as_posix()
    return Found(
        network=network,
        config=config,
        scheduler_config=settings,
        scheduler=called,
        weights=weights.files,
        files=(config_path, scheduler, *weights.files),
        taken=f"{taken}, the average" if averaged else taken,
        averaged=averaged,
        index=weights.index,
    )


def read_json(path: Path) -> JsonRecord:
    """The object in a JSON file.

    Raises:
      ConfigError: it is missing, or no JSON object.
    """
    if not path.is_file():
        state = "is a folder, not a file" if path.is_dir() else "is missing"
        raise ConfigError(f"{path} {state}. A diffusers model has it; copy it there.")
    if reason := why_unusable(path):
        raise ConfigError(f"{path} {reason}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; an object is needed.")
    return found


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise ConfigError(
            f"{folder} is not a folder but a file; give the folder that it lies in, with "
            f"{CONFIG} and {SCHEDULER} beside it."
        )
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder. Put {CONFIG}, one of {', '.join(WEIGHTS)} and "
            f"{SCHEDULER} there: the files of a diffusers model with a UNet2DModel. For a pipeline "
            f"of the Hugging Face hub run 'hf download ORG/NAME --local-dir {folder}'."
        )


def _network(folder: Path) -> Path:
    averages = average_folders(folder, CONFIG)
    if len(averages) > 1:
        listed = " and ".join(f"{path.name}/" for path in averages)
        raise ConfigError(
            f"{folder} holds several averages of a network: {listed}. Give one of these folders, "
            f"for example {averages[0]}."
        )
    if averages:
        return _average(averages[0])
    network = folder / PLAIN if (folder / PLAIN).is_dir() else folder
    if network == folder and not (folder / CONFIG).is_file():
        _refuse_without_network(folder)
    for place in dict.fromkeys((network, folder)):
        check_averages(place, network)
    return network


def _average(average: Path) -> Path:
    if (average / CONFIG).is_file():
        return average
    plain = average.parent / PLAIN
    away = f"give {plain}" if plain.is_dir() else "move it elsewhere"
    raise ConfigError(
        f"{average} seems to hold an average of the network, and has no {CONFIG}. Copy it there to "
        f"take the average, or {away} to leave it out."
    )


def _refuse_without_network(folder: Path) -> None:
    """Raises `ConfigError` for known kinds of folders without config.json."""
    checkpoints = [c for c in folder.glob("checkpoint-*") if c.is_dir()]
    if checkpoints:
        names = ", ".join(sorted((c.name for c in checkpoints), key=lambda n: (len(n), n)))
        raise ConfigError(f"{folder} holds the checkpoints {names}. Give one of them.")
    if (folder / INDEX).is_file():
        raise ConfigError(
            f"{folder} is a pipeline without {PLAIN}/, which holds the network; copy it there."
        )


def _roots(folder: Path) -> list[Path]:
    """The folder, and those above it that belong to the same model."""
    roots = [folder]
    if folder.name == PLAIN or is_average(folder.name):
        roots.append(folder.absolute().parent)
    if roots[-1].absolute().name.startswith("checkpoint-"):
        roots.append(roots[-1].absolute().parent)
    return roots


def _scheduler(folder: Path, network: Path) -> Path:
    places = [root / part / SCHEDULER for root in _roots(folder) for part in ("scheduler", "")]
    for path in (*places, network / SCHEDULER):
        if path.is_file():
            return path
    listed = " and ".join(map(str, places))
    raise ConfigError(
        f"{listed} are missing. It says on what noise levels the network was trained; copy the "
        f"model's {SCHEDULER} to one of them."
    )


def _pipeline(roots: list[Path]) -> dict[str, str]:
    """The classes of a pipeline's parts by name; empty where nothing says that it is one.

    Raises:
      ConfigError: parts beside a UNet2DModel and its scheduler.
    """
    paths = [root / INDEX for root in roots if (root / INDEX).is_file()]
    if not paths:
        return {}
    parts = {
        name: str(value[-1])
        for name, value in read_json(paths[0]).items()
        if not name.startswith("_") and isinstance(value, list) and value and value[-1]
    }
    if parts.get(PLAIN, "UNet2DModel") != "UNet2DModel":
        raise ConfigError(f"{paths[0]}: {PLAIN} is a {parts[PLAIN]}; only UNet2DModel can be read.")
    others = [f"{name} ({kind})" for name, kind in parts.items() if name not in _PARTS]
    if others:
        raise ConfigError(
            f"{paths[0]} is of a pipeline with {', '.join(others)}: its network does not work on "
            "pixels alone. Only pipelines of a UNet2DModel and a scheduler can be read."
        )
    return parts
