"""Teachers from diffusers: a folder with a `UNet2DModel` and its scheduler.

The folder is what `save_pretrained` writes or a model's repository holds: of a pipeline, with
`unet/` and `scheduler/` inside, or of the network alone, with scheduler_config.json beside
config.json (as google/ddpm-cifar10-32 has it).
"""

import json
from pathlib import Path
from typing import Any

from ddistill.errors import ConfigError
from ddistill.interop.ddim import read_schedule
from ddistill.interop.imported import Imported
from ddistill.interop.tensors import file_digest, read_tensors
from ddistill.interop.unet2d import read_options
from ddistill.interop.unet2d_weights import to_params
from ddistill.networks.unet import UNet
from ddistill.runtime.files import expand

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.bin",
)
SCHEDULER = "scheduler_config.json"


def read_teacher(folder: Path) -> Imported:
    """The network, weights and schedule of a folder of diffusers.

    Where there are several files of weights the first of `WEIGHTS` is read. Class-conditional
    networks get a null class of zeros unless ddistill has written them, with their own.

    Raises:
      ConfigError: a file is missing or damaged, or something in it is not supported.
    """
    folder = expand(folder)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder. Put config.json, one of {', '.join(WEIGHTS)} and "
            f"{SCHEDULER} there: the files of a diffusers model with a UNet2DModel."
        )
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    config_path = inner / "config.json"
    config = read_json(config_path)
    options, shape = read_options(config, str(config_path))
    if config.get("_null_class") is not None:
        options["num_classes"] -= 1
    scheduler_path = _scheduler(folder, inner)
    schedule, prediction = read_schedule(read_json(scheduler_path), str(scheduler_path))
    weights = _weights(inner)
    params = to_params(UNet(**options), shape, read_tensors(weights), str(weights))
    return Imported(
        network={"name": "unet", **options},
        params=params,
        prediction=prediction,
        schedule=schedule,
        image_shape=(shape[0], shape[1], shape[2]),
        num_classes=options["num_classes"],
        digest=file_digest(config_path, scheduler_path, weights),
        source=f"diffusers:{folder}",
        licence=_licence(folder),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ConfigError: it is missing, or no JSON object.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing. A diffusers model has it; copy it there.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; an object is needed.")
    return found


def _scheduler(folder: Path, inner: Path) -> Path:
    places = (folder / "scheduler" / SCHEDULER, folder / SCHEDULER, inner / SCHEDULER)
    for path in places:
        if path.is_file():
            return path
    raise ConfigError(
        f"{places[0]} and {places[1]} are missing. It says on what noise levels the network was "
        f"trained; copy the model's {SCHEDULER} to one of them."
    )


def _weights(inner: Path) -> Path:
    for name in WEIGHTS:
        if (inner / name).is_file():
            return inner / name
    sharded = sorted(inner.glob("*.index.json"))
    more = f" {sharded[0].name} says that they are cut into several." if sharded else ""
    raise ConfigError(
        f"There are no weights in {inner}.{more} One of these files is needed: "
        f"{', '.join(WEIGHTS)}."
    )


def _licence(folder: Path) -> str:
    """What the model card's first lines say of the licence."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
        if line.startswith("license:"):
            return line.removeprefix("license:").strip()
    return ""
