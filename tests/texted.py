"""Tiny runs on captions and latents, and the sets that they are trained on."""

import dataclasses
from pathlib import Path

import tiny_sd
from latent_cases import folder

from ddistill.data.captions.choices import Choices
from ddistill.data.captions.sources import open_source
from ddistill.data.latents.openers import open_pipeline
from ddistill.data.latents.writer import SetOptions, make_set
from ddistill.interop.stable_diffusion import StableDiffusion
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)

ROWS = 12


def latent_set(root: Path, pipeline: str, size: int) -> Path:
    """A set of `ROWS` captioned pictures, a part of them for testing."""
    pictures = root / "pictures"
    if not pictures.is_dir():
        folder(pictures, ROWS)
    parts = open_source(str(pictures), Choices()).parts(0.3)
    opened = open_pipeline(pipeline, [row.caption for row in parts["train"].rows])
    options = SetOptions(image_size=size, pixels="all", batch_size=4, workers=2)
    make_set(parts, opened, root / "set", options)
    return root / "set"


def _settings(path: Path, stages: dict[str, StageSettings], **changes) -> Settings:
    return Settings(
        name="texts",
        data={"name": "latents", "path": str(path)},
        stages=stages,
        pipeline=tuple(stages),
        training=TrainingSettings(log_every=2, checkpoint_every=4, preview_every=0, loggers=()),
        evaluation=EvaluationSettings(
            classifier="",
            features="",
            samples=4,
            batch_size=4,
            full_steps=4,
            guidance=2.0,
            clip=0.0,
            grid_images=3,
            strip_images=2,
        ),
        **changes,
    )


def distilled(teacher: Path, path: Path, model: StableDiffusion, steps: int = 4) -> Settings:
    """A pipeline of diffusers as the teacher, guided, and a student of two steps."""
    stages = {
        "teacher": StageSettings(
            objective={"name": "denoising"}, source=f"diffusers:{teacher}", steps=0, batch_size=4
        ),
        "student": StageSettings(
            objective={"name": "o2mkd"},
            teacher="teacher",
            init="teacher",
            guidance=2.0,
            grid=GridSettings(steps=2),
            steps=steps,
            batch_size=4,
            ema=(0.9,),
            method="o2mkd",
            optimizer=OptimizerSettings(learning_rate=1e-3),
        ),
    }
    schedule = ScheduleSettings(**model.schedule)
    return _settings(path, stages, schedule=schedule)


def joint(path: Path, vocabulary: int, length: int, steps: int = 4) -> Settings:
    """A teacher on pixels that learns its text encoder, with dropped texts."""
    network = {
        **{"name": "captioned_unet", "widths": (8,), "blocks": (1,), "attends": (0,)},
        **{"heads": (2,), "context_dim": 8, "norm_groups": 4, "out_channels": 3, "middle": False},
        **{"vocabulary": vocabulary, "positions": length, "text_layers": 1, "text_heads": 2},
    }
    stage = StageSettings(
        objective={"name": "denoising", "label_dropout": 0.3},
        network=network,
        steps=steps,
        batch_size=4,
        ema=(0.9,),
        optimizer=OptimizerSettings(learning_rate=1e-3),
    )
    return _settings(path, {"teacher": stage}, schedule=ScheduleSettings(steps=8))


def changed(settings: Settings, stage: str, **changes) -> Settings:
    """The settings with others of one stage."""
    stages = dict(settings.stages)
    stages[stage] = dataclasses.replace(stages[stage], **changes)
    return dataclasses.replace(settings, stages=stages)


def teacher(root: Path) -> Path:
    """The folder of a tiny pipeline."""
    return tiny_sd.write_folder(root / "teacher", tiny_sd.smallest)
