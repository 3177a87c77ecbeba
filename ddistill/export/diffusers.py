"""Students as folders of diffusers: a `DDIMPipeline` where it can draw them, else a small pipeline.

A student whose levels are variance preserving and end clean becomes a `UNet2DModel` and a
`DDIMScheduler`. Everything else (students that share out levels or classes, class-conditional ones,
EDM's preconditioning, samplers that noise again) becomes one `UNet2DModel` a student, ddistill.json
with levels and owners, and pipeline.py, which needs torch and diffusers alone.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddistill.errors import ConfigError
from ddistill.export.facts import Exported
from ddistill.interop.ddim import BETA_SCHEDULES, write_scheduler
from ddistill.interop.tensors import write_tensors
from ddistill.interop.unet2d import write_options
from ddistill.interop.unet2d_weights import to_tensors
from ddistill.networks.layers import sinusoidal_embedding
from ddistill.networks.unet import UNet
from ddistill.runtime.files import write_text
from ddistill.schedules import Schedule, build_schedule, uniform_grid
from ddistill.settings import ScheduleSettings

# The oldest release that reads what is written here.
VERSION = "0.31.0"
SAMPLERS = ("ddim", "renoise")


def write(exported: Exported, out: Path) -> str:
    """Writes `exported` into the folder `out` and returns a line that says what it is.

    Raises:
      ConfigError: a network, sampler or option that neither form can hold.
    """
    call = exported.call
    if call.sampler not in SAMPLERS:
        raise ConfigError(
            f"'{call.key}' is sampled with {call.sampler}; for diffusers {', '.join(SAMPLERS)} can "
            "be exported. Use --to=stablehlo, or choose another --nfe."
        )
    if call.guidance != 1.0:
        raise ConfigError(
            f"'{call.key}' is a teacher with guidance {call.guidance}, which a folder of diffusers "
            "does not hold. Use --to=stablehlo."
        )
    why = _beyond_ddim(exported)
    if not why:
        _write_ddim(exported, out)
        return f"a DDIMPipeline of {call.steps} steps"
    _write_students(exported, out)
    return f"UNet2DModels with a pipeline.py, because {why}"


def _beyond_ddim(exported: Exported) -> str:
    """Why a `DDIMPipeline` cannot draw it; "" if it can."""
    call = exported.call
    if len(exported.students) > 1:
        return "there are several students"
    if exported.conditional:
        return "the network is told classes, which DDIMPipeline does not pass on"
    if call.sampler == "renoise" and call.steps > 1:
        return "it is noised again after every step"
    try:
        _scheduler(exported)
    except ConfigError as error:
        return str(error)
    return ""


def _write_ddim(exported: Exported, out: Path) -> None:
    call = exported.call
    scheduler, table = _scheduler(exported)
    options = write_options(exported.unet, call.plan.image_shape)
    tensors = dict(_tensors(exported.unet, call.plan.image_shape, exported.denoiser.params))
    if table is not None:
        options |= {"time_embedding_type": "learned", "num_train_timesteps": len(table)}
        tensors["time_proj.weight"] = _sinusoids(exported.unet, table)
    _write_unet(out / "unet", options, tensors)
    _write_json(out / "scheduler" / "scheduler_config.json", {**scheduler, **_version()})
    index = {
        "_class_name": "DDIMPipeline",
        **_version(),
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    _write_json(out / "model_index.json", index)
    _write_json(out / "ddistill.json", exported.manifest())
    # eps is derived anew from the clipped image, as ddistill's samplers do.
    how = f"""
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained(".")
images = pipeline(
    batch_size=16, num_inference_steps={call.steps}, use_clipped_model_output=True
).images
"""
    write_text(out / "README.md", exported.card(how, "diffusers"))


def _scheduler(exported: Exported) -> tuple[dict[str, Any], np.ndarray | None]:
    """scheduler_config.json, and the times that its timesteps 0 .. N-1 stand for.

    The times are None where the network is told the timestep itself. A grid that a `DDIMScheduler`
    makes of the teacher's levels keeps those, so that other step counts can be tried too.
    """
    call, own = exported.call, exported.call.levels
    prediction, clip = exported.denoiser.prediction, exported.clip
    as_told = exported.unet.time_scale == 1.0
    whole = _whole(exported.settings.schedule)
    steps, each = own.num_steps, whole.num_steps
    told = as_told and whole.sigma[0] == 0 and np.array_equal(whole.time[1:], np.arange(each))
    even = each % steps == 0 and np.array_equal(call.grid, uniform_grid(each, steps))
    if told and even and np.array_equal(own.time, whole.time[call.grid]):
        config = write_scheduler(whole, prediction, clip)
        named = _named(exported.settings.schedule)
        return {**config, **named, "timestep_spacing": "trailing"}, None
    if as_told and np.array_equal(own.time[1:], np.arange(steps)):
        return write_scheduler(own, prediction, clip), None
    return write_scheduler(own, prediction, clip), np.asarray(own.time[1:])


def _whole(s: ScheduleSettings) -> Schedule:
    return build_schedule(s.name, s.steps, **s.options)


def _named(s: ScheduleSettings) -> dict[str, Any]:
    """The schedule by diffusers' name instead of its betas, where it has one."""
    needed = set() if s.name == "cosine" else {"start", "end"}
    if s.name not in BETA_SCHEDULES or set(s.options) != needed:
        return {}
    ends = {f"beta_{end}": value for end, value in s.options.items()}
    return {"beta_schedule": BETA_SCHEDULES[s.name], "trained_betas": None, **ends}


def _sinusoids(net: UNet, times: np.ndarray) -> np.ndarray:
    """`[N, channels]`, what our network makes of these times: a table that diffusers can look up.

    With it a timestep 0 .. N-1 stands for any time, which `UNet2DModel` has no other place for.
    """
    layout = {"cosines_first": net.cosines_first, "includes_last": net.includes_last}
    scaled = jnp.asarray(times, jnp.float32) * net.time_scale
    found = sinusoidal_embedding(scaled, net.channels, **layout)
    return np.asarray(found)


def _write_students(exported: Exported, out: Path) -> None:
    net, shape = exported.unet, exported.call.plan.image_shape
    options = write_options(net, shape)
    names = [f"student_{k}" for k in range(len(exported.students))]
    for name, student in zip(names, exported.students):
        _write_unet(out / name, options, dict(_tensors(net, shape, student.params)))
    manifest = {**exported.manifest(net.time_scale), "unets": names}
    _write_json(out / "ddistill.json", manifest)
    shutil.copy(Path(__file__).with_name("pipeline.py"), out / "pipeline.py")
    labels = "labels=[0] * 16" if exported.conditional else "batch_size=16"
    how = f"""
from pipeline import Students

images = Students(".")({labels})  # uint8, one image a row
"""
    write_text(out / "README.md", exported.card(how, "diffusers"))


def _tensors(net: UNet, shape: tuple[int, ...], params: Any):
    return to_tensors(net, shape, jax.device_get(params))


def _write_unet(
    folder: Path, options: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # diffusers leaves keys that begin with "_" alone; our own reader looks for this one.
    null = {"_null_class": options["num_class_embeds"] - 1} if options["num_class_embeds"] else {}
    _write_json(folder / "config.json", {**options, **null, **_version()})
    write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors)


def _version() -> dict[str, str]:
    return {"_diffusers_version": VERSION}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
