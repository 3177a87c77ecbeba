"""Folders of finished runs whose students are sampled and exported in tests."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from runs import manifest

from ddistill import data
from ddistill.data.facts import DataFacts
from ddistill.experiment import note_run
from ddistill.interop.tensors import write_tensors
from ddistill.interop.unet2d import write_options
from ddistill.interop.unet2d_weights import leaves, to_tensors
from ddistill.networks.unet import UNet
from ddistill.parsing import to_plain
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import plan_stages
from ddistill.runtime.files import write_json
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    StudentsSettings,
    TrainingSettings,
)
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.initial import abstract_state

UNET = {
    "name": "unet",
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "norm_groups": 4,
    "out_channels": 1,
}
LINEAR = ScheduleSettings("linear_beta", 16, {"start": 0.01, "end": 0.4})
COMMON: dict[str, Any] = {"steps": 2, "batch_size": 8, "ema": ()}


def settings(name: str, schedule: ScheduleSettings, stages: dict[str, StageSettings]) -> Settings:
    return Settings(
        name=name,
        data={"name": "digits"},
        schedule=schedule,
        stages=stages,
        pipeline=tuple(stages),
        training=TrainingSettings(loggers=()),
        evaluation=EvaluationSettings(
            enabled=False, classifier="", samples=8, grid_images=4, strip_images=2
        ),
    )


def levels_run() -> Settings:
    """A teacher on 16 levels; students on 4 of them, on 3 uneven ones, and two that share all."""
    teacher = StageSettings(
        {"name": "denoising"}, network=UNET, prediction="eps", shared=True, **COMMON
    )
    student = {"teacher": "teacher", "init": "teacher", "method": "sfddm", **COMMON}
    sfddm = {"name": "sfddm", "substeps": 1}
    return settings(
        "levels",
        LINEAR,
        {
            "teacher": teacher,
            "even": StageSettings(sfddm, grid=GridSettings(steps=4), **student),
            "uneven": StageSettings(sfddm, grid=GridSettings(explicit=(0, 3, 7, 16)), **student),
            "pair": StageSettings(
                {"name": "o2mkd"},
                students=StudentsSettings(count=2, partition="timesteps"),
                **{**student, "method": "o2mkd"},
                samplers={"ddim": (6,)},
            ),
        },
    )


def classes_run() -> Settings:
    """An EDM teacher of ten classes, and two students of one step that share them out."""
    network = {**UNET, "num_classes": 10, "time_scale": 200.0}
    teacher = StageSettings(
        {"name": "denoising", "label_dropout": 0.1, "null_class": 10},
        network=network,
        prediction="edm",
        conditional=True,
        **COMMON,
    )
    student = StageSettings(
        {"name": "tsm"},
        teacher="teacher",
        init="teacher",
        conditional=True,
        grid=GridSettings(steps=1),
        students=StudentsSettings(count=2, partition="classes"),
        method="msd_dm",
        **COMMON,
    )
    return settings(
        "classes", ScheduleSettings("karras", 16), {"teacher": teacher, "student": student}
    )


def matching_run() -> Settings:
    """A teacher, and a student of one step that is trained beside a second score network."""
    teacher = StageSettings({"name": "denoising"}, network=UNET, prediction="eps", **COMMON)
    student = StageSettings(
        {"name": "dmd", "regression_weight": 0.0},
        teacher="teacher",
        init="teacher",
        grid=GridSettings(steps=1),
        method="dmd",
        **COMMON,
    )
    return settings("matching", LINEAR, {"teacher": teacher, "student": student})


SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 16,
    "beta_schedule": "linear",
    "beta_start": 0.01,
    "beta_end": 0.4,
    "prediction_type": "epsilon",
    "clip_sample": True,
}


def diffusers_model(made: Path) -> Path:
    """A model's repository of diffusers: network, weights and scheduler side by side."""
    made.mkdir()
    net, shape = UNet(**{k: v for k, v in UNET.items() if k != "name"}), (8, 8, 1)
    rng = np.random.default_rng(0)
    flat = {leaf.path: rng.standard_normal(x).astype(np.float32) for leaf, x in leaves(net, shape)}
    params = traverse_util.unflatten_dict(flat)
    write_tensors(
        made / "diffusion_pytorch_model.safetensors", dict(to_tensors(net, shape, params))
    )
    (made / "config.json").write_text(json.dumps(write_options(net, shape)))
    (made / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return made


def run(made: Settings, folder: Path) -> Path:
    """The folder of an experiment whose networks are random instead of trained."""
    workdir = folder / made.name
    workdir.mkdir()
    dataset = data.load(made.data, "train")
    facts = DataFacts.of(dataset)
    plans = plan_stages(made, facts, workdir, folder / "shared")
    note_run(workdir, to_plain(dataclasses.asdict(made)), facts, plans)
    for plan in plans:
        pretend(plan)
    return workdir


def pretend(plan: StagePlan, seed: int = 0) -> None:
    """Writes what a complete stage leaves, with weights at which every part of it matters."""
    rng = np.random.default_rng(seed)

    def fill(path, x):
        name = jax.tree_util.keystr(path)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return np.full(x.shape, plan.settings.steps if "step" in name else 0, x.dtype)
        noise = rng.standard_normal(x.shape)
        if "kernel" in name:
            return (noise * np.prod(x.shape[1 if plan.stacked else 0 : -1]) ** -0.5).astype(x.dtype)
        return ((1.0 if "scale" in name else 0.0) + 0.2 * noise).astype(x.dtype)

    state = jax.tree_util.tree_map_with_path(fill, abstract_state(plan))
    checkpoints = Checkpoints(plan.folder / "checkpoints", keep=1)
    record = {"clock": {}, "loss": 0.0, "score": 0.0, "digest": plan.digest, "settings": {}}
    checkpoints.save(plan.settings.steps, jax.tree.map(jnp.asarray, state), record, 0.0)
    checkpoints.wait()
    checkpoints.close()
    write_json(plan.manifest_path, manifest(plan))
