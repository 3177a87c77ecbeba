"""A text-to-image student as the folder of a `StableDiffusionPipeline`, or its U-Net alone."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ddistill.errors import ConfigError
from ddistill.export.diffusers_files import (
    WEIGHTS,
    write_config,
    write_index,
    write_network,
    write_scheduler_config,
)
from ddistill.export.facts import Exported, LearntParts
from ddistill.export.model_card import model_card
from ddistill.export.router import write_router
from ddistill.export.text_parts import write_learnt_parts, write_text_parts
from ddistill.export.text_schedulers import PipelineScheduler, pipeline_scheduler
from ddistill.interop.pipeline_folders import TEXT, TOKENIZER, UNET, VAE
from ddistill.interop.text_unet import write_options
from ddistill.interop.text_unet_weights import to_tensors
from ddistill.networks.captioned_unet import TEXT as LEARNT_ENCODER
from ddistill.runtime.files import write_text

# The prompt of the examples.
PROMPT = "a photo of a cat"
_TAGS = ("text-to-image", "stable-diffusion")


def write(exported: Exported, out: Path) -> str:
    """Writes the folder of a pipeline and returns a short description of it.

    Raises:
      ConfigError: diffusers does not support the sampler, the levels or the network.
    """
    run, parts = exported.sampler_run, _parts_of(exported)
    scheduler = scheduler_of(exported)
    names = [UNET if k == 0 else f"{UNET}_{k}" for k in range(len(exported.students))]
    for k, name in enumerate(names):
        write_unet(exported, out / name, WEIGHTS, k)
    write_scheduler_config(out / "scheduler", scheduler.config)
    if isinstance(parts, LearntParts):
        write_learnt_parts(parts, out)
    else:
        assert run.plan.tokenizer is not None
        write_text_parts(parts, out, run.plan.tokenizer.length)
    write_index(out, "StableDiffusionPipeline", pipeline_parts(scheduler.kind))
    routed = write_router(exported, out, names) if len(names) > 1 else {}
    write_config(out / "ddistill.json", {**exported.manifest(), **routed})
    opened = ("diffusers", "StableDiffusionPipeline", "from_pretrained")
    if routed:
        opened = ("pipeline", "RoutedPipeline", "load")
    module, name, method = opened
    how = f"""
from {module} import {name}

pipeline = {name}.{method}(".")
image = {call_of(exported, scheduler)}
"""
    # Not "diffusers" for routed students, with which the hub would show code of its own.
    library = "ddistill" if routed else "diffusers"
    write_text(out / "README.md", model_card(exported, how, library, _TAGS))
    several = f" and {len(names)} students" * bool(routed)
    return f"a StableDiffusionPipeline of {run.steps} steps{several}"


def write_unet_alone(exported: Exported, out: Path) -> str:
    """Writes unet.safetensors with diffusers' names, its config and that of its scheduler.

    Returns:
      A short description of the files.

    Raises:
      ConfigError: the network reads no texts, or diffusers does not support it.
    """
    scheduler = scheduler_of(exported)
    if len(exported.students) > 1:
        raise ConfigError(
            f"'{exported.sampler_run.key}' are {len(exported.students)} U-Nets, of which a router "
            "picks one. Use --to=diffusers, which writes both."
        )
    write_unet(exported, out, "unet.safetensors")
    write_scheduler_config(out, scheduler.config)
    write_config(out / "ddistill.json", exported.manifest())
    how = f"""
from diffusers import {scheduler.kind}, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config("config.json"))
unet.load_state_dict(load_file("unet.safetensors"))
pipeline = StableDiffusionPipeline.from_pretrained("TEACHER", unet=unet)
pipeline.scheduler = {scheduler.kind}.from_pretrained(".")
image = {call_of(exported, scheduler)}
"""
    write_text(out / "README.md", model_card(exported, how, "diffusers", _TAGS))
    return "a UNet2DConditionModel"


def write_unet(exported: Exported, folder: Path, file: str, student: int = 0) -> None:
    """Writes config.json and weights of one student as a `UNet2DConditionModel`.

    Args:
      exported: the students.
      folder: of the network.
      file: the name of the weights.
      student: index of the student.
    """
    net, shape = exported.text_unet, exported.sampler_run.plan.image_shape
    params = jax.device_get(exported.students[student].params)
    own = {name: value for name, value in params.items() if name != LEARNT_ENCODER}
    found = to_tensors(net, shape[2], own)
    tensors = {name: np.asarray(x, exported.precision) for name, x in found}
    write_network(folder, write_options(net, shape), tensors, file)


def pipeline_parts(scheduler: str) -> dict[str, Sequence[str | None] | bool]:
    """The parts of a pipeline with a scheduler of this class, as model_index.json lists them."""
    return {
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        TEXT: ["transformers", "CLIPTextModel"],
        TOKENIZER: ["transformers", "CLIPTokenizer"],
        UNET: ["diffusers", "UNet2DConditionModel"],
        VAE: ["diffusers", "AutoencoderKL"],
    }


def _parts_of(exported: Exported) -> Path | LearntParts:
    if exported.pipeline is None:
        raise ConfigError(
            f"'{exported.sampler_run.key}' sees pixels, and a StableDiffusionPipeline decodes "
            "latents. Use --to=stablehlo or --to=safetensors."
        )
    return exported.pipeline


def scheduler_of(exported: Exported) -> PipelineScheduler:
    """The scheduler that samples as the run does; errors as of `pipeline_scheduler`."""
    run = exported.sampler_run
    if 0 <= run.guidance < 1:
        raise ConfigError(
            f"'{run.key}' has guidance {run.guidance:g}, and diffusers guides above 1 alone. Use "
            "--to=stablehlo."
        )
    return pipeline_scheduler(run, exported.settings.schedule, exported.denoiser.prediction)


def call_of(exported: Exported, scheduler: PipelineScheduler) -> str:
    """The call of the pipeline that samples as the run does."""
    run = exported.sampler_run
    guidance = run.inputs.get("guidance", run.guidance if run.guidance != 1.0 else 0)
    arguments = {**scheduler.arguments, "guidance_scale": guidance}
    named = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return f'pipeline("{PROMPT}", {named}).images[0]'
