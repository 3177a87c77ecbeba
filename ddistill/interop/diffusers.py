"""Teachers from diffusers: a folder with a network and its scheduler, or a pipeline on latents.

The folder is what `save_pretrained` writes or a model's repository holds: of a pipeline, with
`unet/` and `scheduler/` inside, or of the network alone, with scheduler_config.json beside
config.json (as google/ddpm-cifar10-32 has it); or a checkpoint of diffusers' training scripts, with
the averaged network in `unet_ema/` (`diffusers_folders`, `diffusers_weights`). The network is a
`UNet2DModel` or a `DiTTransformer2DModel`. Of a `StableDiffusionPipeline` or a `DiTPipeline` the
denoiser is read, with the digests of the other parts (`stable_diffusion`, `dit_pipeline`).
"""

from pathlib import Path

import numpy as np

from ddistill.interop import dit
from ddistill.interop.ddim import read_schedule
from ddistill.interop.diffusers_folders import Found, find_model
from ddistill.interop.dit_pipeline import read_dit_pipeline
from ddistill.interop.imported import Imported
from ddistill.interop.licences import licence_of
from ddistill.interop.pipeline_folders import CLASS_KINDS, is_class_pipeline, is_text_pipeline
from ddistill.interop.stable_diffusion import read_stable_diffusion
from ddistill.interop.tensors import file_digest, read_tensors
from ddistill.interop.unet2d import read_options
from ddistill.interop.unet2d_weights import to_params
from ddistill.networks.dit import DiT
from ddistill.networks.unet import UNet
from ddistill.runtime.files import expand
from ddistill.typing import Options, Params


def read_teacher(folder: Path, named: str = "") -> Imported:
    """The network, weights and schedule of a folder of diffusers.

    Where there are several files of weights, an average (`unet_ema/` beside `unet/`, or
    diffusion_pytorch_model.ema.safetensors) goes before the weights themselves and full precision
    before half precision; `Imported.source` names the file. Class-conditional networks get a null
    class of zeros unless ddistill has written them, with their own.

    Args:
      folder: the folder.
      named: its name in `Imported.source`; "" for its path.

    Raises:
      ConfigError: a file is missing or damaged, or something in it is not supported.
    """
    folder = expand(folder)
    if is_text_pipeline(folder):
        return read_stable_diffusion(folder, named).imported(folder)
    if is_class_pipeline(folder):
        return read_dit_pipeline(folder, named).imported(folder)
    model = find_model(folder)
    schedule, prediction = read_schedule(model.scheduler_config, model.scheduler)
    weights = model.weights[0] if len(model.weights) == 1 else model.network
    is_dit = model.config.get("_class_name") in CLASS_KINDS
    options, shape, params = (_dit if is_dit else _unet)(model, str(weights))
    return Imported(
        network=options,
        params=params,
        prediction=prediction,
        schedule=schedule,
        image_shape=shape,
        num_classes=options["num_classes"],
        digest=file_digest(*model.files),
        source=f"diffusers:{named or folder} ({model.taken})",
        licence=licence_of(folder),
    )


_Read = tuple[Options, tuple[int, int, int], Params]


def _unet(model: Found, weights: str) -> _Read:
    """Name and options of the network, the shape of its images, and its parameters."""
    options, shape = read_options(model.config, str(model.network / "config.json"))
    if model.config.get("_null_class") is not None:
        options = {**options, "num_classes": options["num_classes"] - 1}
    params = to_params(UNet(**options), shape, _tensors(model), weights)
    return {"name": "unet", **options}, (shape[0], shape[1], shape[2]), params


def _dit(model: Found, weights: str) -> _Read:
    """The same of a `DiTTransformer2DModel`, whose class table has a null class in any case."""
    options, shape = dit.read_options(model.config, str(model.network / "config.json"))
    params = dit.to_params(DiT(**options), shape, _tensors(model), weights)
    return {"name": "dit", **options}, shape, params


def _tensors(model: Found) -> dict[str, np.ndarray]:
    return model.index.read() if model.index else read_tensors(model.weights[0])
