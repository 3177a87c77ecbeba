"""Students of a text-to-image pipeline as LoRA files for the pipeline's U-Net.

Students that were trained with a low rank are written as they are. The difference of whole students
to the U-Net is factored by singular value decomposition, which leaves out what is no kernel of a
layer: biases and norms.
"""

from pathlib import Path

import jax
import numpy as np

from ddistill.denoiser import Denoiser, whole
from ddistill.errors import ConfigError
from ddistill.export.facts import Exported
from ddistill.export.json_files import diffusers_version, write_config
from ddistill.export.model_card import model_card
from ddistill.export.text_pipeline import call_of, scheduler_of
from ddistill.interop.diffusers_folders import SCHEDULER
from ddistill.interop.lora import FILE, rank_of, to_tensors
from ddistill.interop.tensors import write_tensors
from ddistill.low_rank import extract
from ddistill.runtime.files import write_text
from ddistill.typing import Params

_TAGS = ("text-to-image", "stable-diffusion", "lora")


def write(exported: Exported, out: Path, base: Params, rank: int) -> str:
    """Writes one file for each student, the scheduler's config, ddistill.json and README.md.

    Args:
      exported: students of a pipeline.
      out: the folder to write.
      base: parameters of the pipeline's U-Net, in the host's memory.
      rank: of the factors of whole students; those of students of low rank keep their own.

    Returns:
      A short description of the files, with the share of the difference that they lack.

    Raises:
      ConfigError: the students are not of a pipeline's U-Net, or diffusers does not support their
        sampler or levels.
    """
    if exported.pipeline is None:
        raise ConfigError(
            f"'{exported.sampler_run.key}' is no student of a 'diffusers:' pipeline, for whose "
            "U-Net a LoRA file could be. Use --to=safetensors."
        )
    if rank < 1:
        raise ConfigError(f"--rank={rank} must be 1 or more.")
    scheduler, names = scheduler_of(exported), adapter_names(exported)
    channels = exported.sampler_run.plan.image_shape[2]
    lost, ranks = [], []
    for name, student in zip(names, exported.students):
        factors, left_out = _factors(student, base, rank)
        found = to_tensors(exported.text_unet, channels, factors)
        lost.append(left_out)
        ranks.append(rank_of(found))
        tensors = {key: np.asarray(x, exported.precision) for key, x in found.items()}
        # No metadata: readers then take the rank for alpha.
        write_tensors(out / _file(name, names), tensors)
    write_config(out / SCHEDULER, {**scheduler.config, **diffusers_version()})
    manifest = {"adapters": names, "rank": max(ranks), "left_out": lost}
    write_config(out / "ddistill.json", {**exported.manifest(), **manifest})
    text = model_card(exported, _example(exported, scheduler.kind, names), "diffusers", _TAGS)
    write_text(out / "README.md", text)
    what = f"{len(names)} LoRA files" if len(names) > 1 else "a LoRA file"
    said = f"{what} of rank {max(ranks)}"
    return f"{said} without {max(lost):.2%} of the squared difference" if max(lost) else said


def adapter_names(exported: Exported) -> list[str]:
    """The names of the students as adapters: s0, s1, ..."""
    return [f"s{k}" for k in range(len(exported.students))]


def _file(name: str, names: list[str]) -> str:
    return f"{name}.safetensors" if len(names) > 1 else FILE


def _factors(student: Denoiser, base: Params, rank: int) -> tuple[Params, float]:
    """The factors of a student for the base, and the share of the difference that they lack."""
    if student.base is base:
        return jax.device_get(student.params), 0.0
    found = extract(base, jax.device_get(whole(student).params), rank)
    return found.factors, found.left_out


def _example(exported: Exported, scheduler: str, names: list[str]) -> str:
    """The code of the model card."""
    call = call_of(exported, scheduler_of(exported))
    lines = [
        f"from diffusers import {scheduler}, StableDiffusionPipeline",
        "",
        'pipeline = StableDiffusionPipeline.from_pretrained("TEACHER")',
        f'pipeline.scheduler = {scheduler}.from_pretrained(".")',
    ]
    if len(names) == 1:
        return "\n".join([*lines, 'pipeline.load_lora_weights(".")', f"image = {call}"])
    owners = exported.owners()[::-1, 0].tolist()  # from the noisiest level
    lines += [
        f"for name in {names}:",
        '    pipeline.load_lora_weights(".", weight_name=f"{name}.safetensors", adapter_name=name)',
    ]
    if len(set(owners)) == 1:
        return "\n".join([*lines, f'pipeline.set_adapters("{names[0]}")', f"image = {call}"])
    switched = call.removesuffix(").images[0]") + ", callback_on_step_end=switch).images[0]"
    lines += [
        f"steps = {[names[k] for k in owners]}  # the adapter of every step",
        "",
        "def switch(pipeline, step, timestep, tensors):",
        "    pipeline.set_adapters(steps[min(step + 1, len(steps) - 1)])",
        "    return tensors",
        "",
        "pipeline.set_adapters(steps[0])",
        f"image = {switched}",
    ]
    return "\n".join(lines)
