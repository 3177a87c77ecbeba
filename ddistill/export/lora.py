"""Students of a text-to-image pipeline as LoRA files for the pipeline's U-Net.

Students that were trained with a low rank are written as they are. The difference of whole students
to the U-Net is factored by singular value decomposition, which leaves out what is no kernel of a
layer: biases and norms. Students that divide texts have the router of their pipeline beside them.
"""

from pathlib import Path

import jax
import numpy as np

from ddistill.denoiser import Denoiser, whole
from ddistill.errors import ConfigError
from ddistill.export.diffusers_files import write_config, write_scheduler_config
from ddistill.export.facts import Exported
from ddistill.export.model_card import model_card
from ddistill.export.router import write_router
from ddistill.export.text_pipeline import PROMPT, call_of, scheduler_of
from ddistill.export.text_schedulers import PipelineScheduler
from ddistill.interop.lora import FILE, rank_of, to_tensors
from ddistill.interop.tensors import write_tensors
from ddistill.low_rank import extract
from ddistill.partitions import text_part
from ddistill.runtime.files import write_text
from ddistill.students import RoutedDenoiser
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
      ConfigError: the students are not of a pipeline's U-Net as it was read, or diffusers does not
        support their sampler or levels.
    """
    if exported.pipeline is None:
        raise ConfigError(
            f"'{exported.sampler_run.key}' is no student of a 'diffusers:' pipeline, for whose "
            "U-Net a LoRA file could be. Use --to=safetensors."
        )
    if rank < 1:
        raise ConfigError(f"--rank={rank} must be 1 or more.")
    teacher = exported.sampler_run.plan.text_stage
    if teacher.settings.steps:
        raise ConfigError(
            f"stage '{teacher.name}' has trained the U-Net of the pipeline for "
            f"{teacher.settings.steps} steps, and LoRA files change the U-Net as it was before. "
            "Use --to=diffusers."
        )
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
    write_scheduler_config(out, scheduler.config)
    manifest = {"adapters": names, "rank": max(ranks), "left_out": lost}
    routed = write_router(exported, out, names) if _divides_texts(exported) else {}
    write_config(out / "ddistill.json", {**exported.manifest(), **manifest, **routed})
    write_text(
        out / "README.md",
        model_card(exported, _example(exported, scheduler, names), "diffusers", _TAGS),
    )
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


def _divides_texts(exported: Exported) -> bool:
    network = exported.network
    return isinstance(network, RoutedDenoiser) and text_part(network.partition) is not None


def _example(exported: Exported, scheduler: PipelineScheduler, names: list[str]) -> str:
    """The code of the model card."""
    call = call_of(exported, scheduler)
    lines = [
        f"from diffusers import {scheduler.kind}, StableDiffusionPipeline",
        "",
        'pipeline = StableDiffusionPipeline.from_pretrained("TEACHER")',
        f'pipeline.scheduler = {scheduler.kind}.from_pretrained(".")',
    ]
    if len(names) == 1:
        return "\n".join([*lines, 'pipeline.load_lora_weights(".")', f"image = {call}"])
    lines += [
        f"for name in {names}:",
        '    pipeline.load_lora_weights(".", weight_name=f"{name}.safetensors", adapter_name=name)',
    ]
    # From the noisiest level, the adapter of every step, or of every cell of texts.
    steps: list = [[names[k] for k in row] for row in exported.owners()[::-1]]
    cell = ""
    if _divides_texts(exported):
        lines.insert(1, "from pipeline import Router")
        lines.append(f'cell = Router.load(".").cell_of(pipeline, "{PROMPT}")')
        cell = "[cell]"
    else:
        steps = [row[0] for row in steps]
    if all(row == steps[0] for row in steps):
        which = f"{steps[0]}[cell]" if cell else f'"{steps[0]}"'
        return "\n".join([*lines, f"pipeline.set_adapters({which})", f"image = {call}"])
    switched = call.removesuffix(").images[0]") + ", callback_on_step_end=switch).images[0]"
    lines += [
        f"steps = {steps}  # the adapter of every step{', by cell' * bool(cell)}",
        "",
        "def switch(pipeline, step, timestep, tensors):",
        f"    pipeline.set_adapters(steps[min(step + 1, len(steps) - 1)]{cell})",
        "    return tensors",
        "",
        f"pipeline.set_adapters(steps[0]{cell})",
        f"image = {switched}",
    ]
    return "\n".join(lines)
