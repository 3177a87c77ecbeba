"""Students as folders of diffusers: a `DDIMPipeline` if possible, else a small custom pipeline.

A student with variance-preserving levels that end clean becomes a `UNet2DModel` and a
`DDIMScheduler`. Everything else (the students of a partition, class-conditional students, the
preconditioning of EDM, samplers that add noise in every step, latents) becomes one `UNet2DModel`
per student, ddistill.json with levels and owners, and pipeline.py, which needs only torch and
diffusers. Students that read texts are folders of a `StableDiffusionPipeline` (`text_pipeline`).
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.errors import ConfigError
from ddistill.export import text_pipeline
from ddistill.export.diffusers_files import (
    write_config,
    write_index,
    write_network,
    write_scheduler_config,
)
from ddistill.export.facts import Exported
from ddistill.export.model_card import model_card
from ddistill.export.student_folders import write_students
from ddistill.interop.ddim import named_betas, write_scheduler
from ddistill.interop.unet2d import write_options
from ddistill.interop.unet2d_weights import to_tensors
from ddistill.networks.layers import sinusoidal_embedding
from ddistill.networks.unet import UNet
from ddistill.runtime.files import write_text
from ddistill.schedules import Schedule, build_schedule, uniform_grid
from ddistill.settings import ScheduleSettings
from ddistill.typing import Params

SAMPLERS = ("ddim", "renoise")


def write(exported: Exported, out: Path) -> str:
    """Writes `exported` into the folder `out` and returns a short description of the files.

    Raises:
      ConfigError: diffusers does not support the network, the sampler or an option.
    """
    if exported.reads_text:
        return text_pipeline.write(exported, out)
    check(exported)
    why = _beyond_ddim(exported)
    if not why:
        _write_ddim(exported, out)
        return f"a DDIMPipeline of {exported.sampler_run.steps} steps"
    _write_students(exported, out)
    return f"UNet2DModels with a pipeline.py, because {why}"


def check(exported: Exported) -> None:
    """Raises `ConfigError` for samplers and inputs that no network of diffusers has here."""
    run = exported.sampler_run
    if run.sampler not in SAMPLERS:
        raise ConfigError(
            f"'{run.key}' is sampled with {run.sampler}; the export to diffusers supports "
            f"{', '.join(SAMPLERS)}. Use --to=stablehlo, or choose another --nfe."
        )
    if run.guidance != 1.0:
        raise ConfigError(
            f"'{run.key}' is sampled with guidance {run.guidance}, which the export to diffusers "
            "does not support. Use --to=stablehlo."
        )
    told = run.plan.objective.extra_inputs
    if told:
        raise ConfigError(
            f"'{run.key}' is a network that is given {', '.join(told)}, which UNet2DModel "
            "does not support. Use --to=stablehlo or --to=safetensors."
        )


def _beyond_ddim(exported: Exported) -> str:
    """Why a `DDIMPipeline` cannot sample the network; "" if it can."""
    run = exported.sampler_run
    if len(exported.students) > 1:
        return "there are several students"
    if exported.conditional:
        return "the network is class-conditional, and DDIMPipeline passes no classes"
    if exported.sees_latents:
        return "the network sees latents, which DDIMPipeline does not decode"
    if run.sampler == "renoise" and run.steps > 1:
        return "its sampler adds noise in every step"
    try:
        ddim_scheduler(exported)
    except ConfigError as error:
        return str(error)
    return ""


def _write_ddim(exported: Exported, out: Path) -> None:
    run = exported.sampler_run
    scheduler, table = ddim_scheduler(exported)
    options = write_options(exported.unet, run.plan.image_shape)
    tensors = _tensors(exported, exported.denoiser.params)
    if table is not None:
        options |= {"time_embedding_type": "learned", "num_train_timesteps": len(table)}
        tensors["time_proj.weight"] = _sinusoids(exported.unet, table)
    _write_unet(out / "unet", options, tensors)
    write_scheduler_config(out / "scheduler", scheduler)
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    write_index(out, "DDIMPipeline", parts)
    write_config(out / "ddistill.json", exported.manifest())
    # As the samplers of ddistill, the pipeline derives eps again from the clipped image.
    how = f"""
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained(".")
images = pipeline(
    batch_size=16, num_inference_steps={run.steps}, use_clipped_model_output=True
).images
"""
    write_text(out / "README.md", model_card(exported, how, "diffusers"))


def ddim_scheduler(exported: Exported) -> tuple[dict[str, object], np.ndarray | None]:
    """Returns scheduler_config.json of a `DDIMScheduler` and the times of its timesteps 0 .. N-1.

    The times are None if the network receives the timestep itself. If a `DDIMScheduler` on the
    levels of the teacher has the grid of the student, all levels of the teacher are kept, so that
    users can try other step counts.

    Raises:
      ConfigError: a `DDIMScheduler` does not have these levels or this prediction type.
    """
    run, own = exported.sampler_run, exported.sampler_run.levels
    prediction, clip = exported.denoiser.prediction, exported.clip
    unscaled = getattr(run.plan.module, "time_scale", 1.0) == 1.0
    whole = _whole(exported.settings.schedule)
    steps, each = own.num_steps, whole.num_steps
    same_times = (
        unscaled and whole.sigma[0] == 0 and np.array_equal(whole.time[1:], np.arange(each))
    )
    even = each % steps == 0 and np.array_equal(run.grid, uniform_grid(each, steps))
    if same_times and even and np.array_equal(own.time, whole.time[run.grid]):
        config = write_scheduler(whole, prediction, clip)
        made = exported.settings.schedule
        named = named_betas(made.name, made.options)
        return {**config, **named, "timestep_spacing": "trailing"}, None
    if unscaled and np.array_equal(own.time[1:], np.arange(steps)):
        return write_scheduler(own, prediction, clip), None
    return write_scheduler(own, prediction, clip), np.asarray(own.time[1:])


def _whole(s: ScheduleSettings) -> Schedule:
    return build_schedule(s.name, s.steps, **s.options)


def _sinusoids(net: UNet, times: np.ndarray) -> np.ndarray:
    """`[N, channels]` time embeddings of the network, as a table for diffusers.

    With the table, timesteps 0 .. N-1 of `UNet2DModel` stand for arbitrary times.
    """
    layout = {"cosines_first": net.cosines_first, "includes_last": net.includes_last}
    scaled = jnp.asarray(times, jnp.float32) * net.time_scale
    found = sinusoidal_embedding(scaled, net.channels, **layout)
    return np.asarray(found)


def _write_students(exported: Exported, out: Path) -> None:
    net = exported.unet
    options = write_options(net, exported.sampler_run.plan.image_shape)

    def write_one(folder: Path, params: Params) -> None:
        _write_unet(folder, options, _tensors(exported, params))

    write_students(exported, out, write_one, exported.manifest(net.time_scale))


def _tensors(exported: Exported, params: Params) -> dict[str, np.ndarray]:
    shape = exported.sampler_run.plan.image_shape
    return dict(to_tensors(exported.unet, shape, jax.device_get(params)))


def _write_unet(
    folder: Path, options: Mapping[str, object], tensors: Mapping[str, np.ndarray]
) -> None:
    # diffusers ignores keys that begin with "_"; the reader of ddistill uses this one.
    classes = options["num_class_embeds"]
    null = {"_null_class": classes - 1} if isinstance(classes, int) and classes else {}
    write_network(folder, {**options, **null}, tensors)
