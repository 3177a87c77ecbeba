"""Students that are diffusion transformers, as folders of diffusers.

A class-conditional student on the latents of a pipeline, with levels of a `DDIMScheduler`, is a
`DiTPipeline`. Everything else becomes one `DiTTransformer2DModel` per student, ddistill.json with
levels and owners, and pipeline.py. Levels of flow matching are also written as a
`FlowMatchEulerDiscreteScheduler`, which `DiTPipeline` cannot use.
"""

import shutil
from pathlib import Path

import jax

from ddistill.errors import ConfigError
from ddistill.export.diffusers import check, ddim_scheduler
from ddistill.export.facts import Exported
from ddistill.export.json_files import diffusers_version, write_config
from ddistill.export.model_card import model_card
from ddistill.export.trees import Params
from ddistill.interop.dit import KIND, to_tensors, write_options
from ddistill.interop.flow_match import write_flow_scheduler
from ddistill.interop.pipeline_folders import TRANSFORMER, VAE, find_part
from ddistill.interop.pipeline_parts import FOLDER
from ddistill.interop.tensors import write_tensors
from ddistill.networks.dit import DiT
from ddistill.runtime.files import write_text
from ddistill.typing import JsonRecord


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
    if _vae(exported) is None:
        return "the network sees pixels, and DiTPipeline decodes latents"
    if run.sampler == "renoise" and run.steps > 1:
        return "its sampler adds noise in every step"
    try:
        _, table = ddim_scheduler(exported)
    except ConfigError as error:
        return str(error)
    return (
        "the times of its levels are no timesteps of a DDIMScheduler" if table is not None else ""
    )


def _vae(exported: Exported) -> Path | None:
    """The folder with the autoencoder of the teacher's pipeline; None for pixels."""
    stage = exported.sampler_run.plan.text_stage
    return stage.folder / FOLDER if stage.has_parts else None


def _write_pipeline(exported: Exported, out: Path) -> None:
    run = exported.sampler_run
    scheduler, _ = ddim_scheduler(exported)
    _write_transformer(exported, out / TRANSFORMER, exported.denoiser.params)
    write_config(out / "scheduler" / "scheduler_config.json", {**scheduler, **diffusers_version()})
    _copy_vae(exported, out)
    index = {
        "_class_name": "DiTPipeline",
        **diffusers_version(),
        "scheduler": ["diffusers", "DDIMScheduler"],
        TRANSFORMER: ["diffusers", KIND],
        VAE: ["diffusers", "AutoencoderKL"],
    }
    write_config(out / "model_index.json", index)
    write_config(out / "ddistill.json", exported.manifest())
    # With guidance the pipeline would also ask for class 1000, whatever the number of classes.
    how = f"""
from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained(".")
images = pipeline(
    class_labels=[0] * 16, num_inference_steps={run.steps}, guidance_scale=1.0
).images
"""
    write_text(out / "README.md", model_card(exported, how, "diffusers"))


def _write_students(exported: Exported, out: Path) -> None:
    names = [f"student_{k}" for k in range(len(exported.students))]
    for name, student in zip(names, exported.students):
        _write_transformer(exported, out / name, student.params)
    facts = {
        **exported.manifest(_module(exported).time_scale),
        "unets": names,
        "network_class": KIND,
        **_flow(exported, out),
    }
    if _copy_vae(exported, out):
        facts[VAE] = VAE
    write_config(out / "ddistill.json", facts)
    shutil.copy(Path(__file__).with_name("pipeline.py"), out / "pipeline.py")
    labels = "labels=[0] * 16" if exported.conditional else "batch_size=16"
    how = f"""
from pipeline import Students

images = Students(".")({labels})  # [N, H, W, C] uint8
"""
    write_text(out / "README.md", model_card(exported, how, "ddistill", ("diffusers",)))


def _flow(exported: Exported, out: Path) -> JsonRecord:
    """Writes the scheduler of a flow student, and returns the sigmas that it has to be told."""
    flow = exported.denoiser.prediction == "flow" and exported.sampler_run.sampler == "ddim"
    if not flow or _module(exported).time_scale != 1.0:
        return {}
    try:
        config, sigmas = write_flow_scheduler(exported.sampler_run.levels)
    except ConfigError:
        return {}  # levels of another path, which pipeline.py knows
    write_config(out / "scheduler" / "scheduler_config.json", {**config, **diffusers_version()})
    return {"scheduler_sigmas": sigmas}


def _module(exported: Exported) -> DiT:
    module = exported.sampler_run.plan.module
    assert isinstance(module, DiT)  # others are written elsewhere
    return module


def _write_transformer(exported: Exported, folder: Path, params: Params) -> None:
    net, shape = _module(exported), exported.sampler_run.plan.image_shape
    options = write_options(net, shape)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / "config.json", {**options, **diffusers_version()})
    tensors = dict(to_tensors(net, shape[2], jax.device_get(params)))
    write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors)


def _copy_vae(exported: Exported, out: Path) -> bool:
    """Copies the autoencoder byte for byte; False where there is none."""
    source = _vae(exported)
    if source is None:
        return False
    (out / VAE).mkdir(parents=True, exist_ok=True)
    for file in find_part(source, VAE).files:
        shutil.copyfile(file, out / VAE / file.name)
    return True
