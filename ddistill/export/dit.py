"""Students that are diffusion transformers, as folders of diffusers.

A class-conditional student on latents, with levels of a `DDIMScheduler`, is a `DiTPipeline`.
Everything else becomes one `DiTTransformer2DModel` per student, ddistill.json with levels and
owners, and pipeline.py. Levels of flow matching are also written as a
`FlowMatchEulerDiscreteScheduler`, which `DiTPipeline` cannot use.
"""

from pathlib import Path

import jax

from ddistill.errors import ConfigError
from ddistill.export.autoencoder import write_autoencoder
from ddistill.export.diffusers import check, ddim_scheduler
from ddistill.export.diffusers_files import (
    write_config,
    write_index,
    write_network,
    write_scheduler_config,
)
from ddistill.export.facts import Exported
from ddistill.export.model_card import model_card
from ddistill.export.student_folders import write_students
from ddistill.interop.dit import KIND, to_tensors, write_options
from ddistill.interop.flow_match import write_flow_scheduler
from ddistill.interop.pipeline_folders import TRANSFORMER, VAE
from ddistill.networks.dit import DiT
from ddistill.runtime.files import write_text
from ddistill.typing import JsonRecord, Params


def write(exported: Exported, out: Path) -> str:
    """Writes `exported` into the folder `out` and returns a short description of the files.

    Raises:
      ConfigError: diffusers does not support the network, the sampler or an option.
    """
    check(exported)
    why = _beyond_pipeline(exported)
    if not why:
        _write_pipeline(exported, out)
        return f"a DiTPipeline of {exported.sampler_run.steps} steps"
    _write_students(exported, out)
    return f"{KIND}s with a pipeline.py, because {why}"


def _beyond_pipeline(exported: Exported) -> str:
    """Why a `DiTPipeline` cannot sample the network; "" if it can."""
    run = exported.sampler_run
    if len(exported.students) > 1:
        return "there are several students"
    if not exported.conditional:
        return "the network is unconditional, and DiTPipeline passes classes"
    if not exported.sees_latents:
        return "the network sees pixels, and DiTPipeline decodes latents"
    if _shift(exported):
        return "the autoencoder shifts its latents, which DiTPipeline ignores"
    if run.sampler == "renoise" and run.steps > 1:
        return "its sampler adds noise in every step"
    try:
        _, table = ddim_scheduler(exported)
    except ConfigError as error:
        return str(error)
    return (
        "the times of its levels are no timesteps of a DDIMScheduler" if table is not None else ""
    )


def _shift(exported: Exported) -> float:
    """The shift of the latents, in the terms of `Scaling`."""
    encoder = exported.sampler_run.plan.encoder
    return 0.0 if encoder is None else encoder.shift


def _write_pipeline(exported: Exported, out: Path) -> None:
    scheduler, _ = ddim_scheduler(exported)
    _write_transformer(exported, out / TRANSFORMER, exported.denoiser.params)
    write_scheduler_config(out / "scheduler", scheduler)
    write_autoencoder(exported, out)
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        TRANSFORMER: ["diffusers", KIND],
        VAE: ["diffusers", "AutoencoderKL"],
    }
    write_index(out, "DiTPipeline", parts)
    write_config(out / "ddistill.json", exported.manifest())
    # With guidance the pipeline would also ask for class 1000, whatever the number of classes.
    how = f"""
from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained(".")
images = pipeline(
    class_labels=[0] * 16, num_inference_steps={exported.sampler_run.steps}, guidance_scale=1.0
).images
"""
    write_text(out / "README.md", model_card(exported, how, "diffusers"))


def _write_students(exported: Exported, out: Path) -> None:
    facts = {
        **exported.manifest(_module(exported).time_scale),
        "network_class": KIND,
        **_flow(exported, out),
    }
    write_students(exported, out, lambda *given: _write_transformer(exported, *given), facts)


def _flow(exported: Exported, out: Path) -> JsonRecord:
    """Writes the scheduler of a flow student, and returns the sigmas that it has to be told.

    Unlike pipeline.py, the scheduler does not bound predictions of x0.
    """
    flow = exported.denoiser.prediction == "flow" and exported.sampler_run.sampler == "ddim"
    if not flow or _module(exported).time_scale != 1.0:
        return {}
    try:
        config, sigmas = write_flow_scheduler(exported.sampler_run.levels)
    except ConfigError:
        return {}  # levels of another path, which pipeline.py knows
    write_scheduler_config(out / "scheduler", config)
    return {"scheduler_sigmas": sigmas}


def _module(exported: Exported) -> DiT:
    module = exported.sampler_run.plan.module
    assert isinstance(module, DiT)  # others are written elsewhere
    return module


def _write_transformer(exported: Exported, folder: Path, params: Params) -> None:
    net, shape = _module(exported), exported.sampler_run.plan.image_shape
    tensors = dict(to_tensors(net, shape[2], jax.device_get(params)))
    write_network(folder, write_options(net, shape), tensors)
