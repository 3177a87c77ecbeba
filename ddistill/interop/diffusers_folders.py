"""Which files of a folder of diffusers are the network, its weights and its scheduler."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddistill.errors import ConfigError
from ddistill.interop.file_kinds import why_unusable

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.bin",
)
CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
# The network of a pipeline, and its average as diffusers' training scripts save it.
PLAIN, AVERAGE = "unet", "unet_ema"
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
      scheduler: what to call it in messages.
      weights: one file, or the shards in the order of their names.
      files: all of the files that say what the model is, for a digest.
      averaged: whether the average was taken where the network is there too.
    """

    network: Path
    config: dict[str, Any]
    scheduler_config: dict[str, Any]
    scheduler: str
    weights: tuple[Path, ...]
    files: tuple[Path, ...]
    averaged: bool


def find_model(folder: Path) -> Found:
    """The files of the model in a folder.

    The folder is a pipeline (`unet/` and `scheduler/` inside), a checkpoint of a training script
    (`unet/` and `unet_ema/`, of which the average is taken), one of these inner folders, or holds
    the files side by side. A checkpoint has no scheduler; that of the training's folder is taken.

    Raises:
      ConfigError: a file is missing or is no JSON object, or the folder holds another pipeline.
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
    weights = _weights(network)
    return Found(
        network=network,
        config=config,
        scheduler_config=settings,
        scheduler=called,
        weights=weights,
        files=(config_path, scheduler, *weights),
        averaged=network.name == AVERAGE and (folder / PLAIN).is_dir(),
    )


def read_json(path: Path) -> dict[str, Any]:
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
            f"{SCHEDULER} there: the files of a diffusers model with a UNet2DModel."
        )


def _network(folder: Path) -> Path:
    for name in (AVERAGE, PLAIN):
        if (folder / name).is_dir():
            return folder / name
    if not (folder / CONFIG).is_file():
        checkpoints = [c for c in folder.glob("checkpoint-*") if c.is_dir()]
        if checkpoints:
            names = ", ".join(sorted((c.name for c in checkpoints), key=lambda n: (len(n), n)))
            raise ConfigError(f"{folder} holds the checkpoints {names}. Give one of them.")
        if (folder / INDEX).is_file():
            raise ConfigError(
                f"{folder} is a pipeline without {PLAIN}/, which holds the network; copy it there."
            )
    return folder


def _roots(folder: Path) -> list[Path]:
    """The folder, and those above it that belong to the same model."""
    roots = [folder]
    if folder.name in (PLAIN, AVERAGE):
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


def _weights(network: Path) -> tuple[Path, ...]:
    for name in WEIGHTS:
        if (network / name).is_file():
            return (network / name,)
    indices = sorted(network.glob("diffusion_pytorch_model*.index*.json"))
    if indices:
        return _shards(indices[-1])
    kinds = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack")
    there = sorted(file.name for kind in kinds for file in network.glob(kind))
    more = f" It holds {', '.join(there[:5])}." if there else ""
    raise ConfigError(
        f"There are no weights in {network}.{more} One of these files is needed: "
        f"{', '.join(WEIGHTS)}."
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index of weights names."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, Mapping) or not all(_is_name(name) for name in table.values()):
        raise ConfigError(f"{index}: weight_map must say in which file each tensor is.")
    names = sorted(set(table.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise ConfigError(
            f"{index} names {len(names)} files of weights, and {len(missing)} of them are missing: "
            f"{', '.join(missing[:5])}. Copy them beside it."
        )
    return tuple(index.parent / name for name in names)


def _is_name(value: Any) -> bool:
    """Whether a value names a file that lies beside its index."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\")
