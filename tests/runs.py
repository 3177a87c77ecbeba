"""A run of two tiny stages, teacher and SFDDM student, and what tests look at in its folders."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from tiny import TinyNet

from ddistill import data, networks
from ddistill.data.facts import DataFacts
from ddistill.parsing import to_plain
from ddistill.planning.plan import StagePlan
from ddistill.planning.planner import plan_stages
from ddistill.recipes import progressive
from ddistill.runtime.console import Reporter
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    StudentsSettings,
    TrainingSettings,
)
from ddistill.training.initial import abstract_state
from ddistill.training.state import TrainState


class Notes(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def manifest(plan: StagePlan, **changes: Any) -> dict[str, Any]:
    """What a complete stage writes, of no cost."""
    count = len(plan.students)
    return {
        "stage": plan.name,
        "digest": plan.digest,
        "steps": plan.settings.steps,
        "updates": plan.settings.steps,
        "batch_size": plan.settings.batch_size,
        "students": count,
        "parameters": 0,
        "teacher_calls": 0,
        "teacher_calls_of_each": [0] * count,
        "diverged": [0] * count if plan.stacked else [],
        "train_seconds": 0.0,
        "compile_seconds": 0.0,
        "data_wait_seconds": 0.0,
        "ema": list(plan.settings.ema),
        "final_loss": 0.0,
        "handed_on": plan.settings.steps,
        **changes,
    }


# The record of a checkpoint, from which a training can go on.
RECORD: dict[str, Any] = {
    "clock": {"train": 0.0, "compile": 0.0, "wait": 0.0},
    "loss": 1.0,
    "scores": {"sums": {}, "last": {}},
    "alarms": {"step": 0, "known": {}, "fatal": [], "born": []},
}


class LateStop(StopRequest):
    """A signal that arrives just before the n-th look."""

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left <= 0


UNET = {
    "name": "unet",
    "channels": 8,
    "multipliers": (1,),
    "blocks": 1,
    "attention": (),
    "mid_attention": False,
    "norm_groups": 4,
    "out_channels": 1,
}
# What a config file says by "name": "tiny".
networks.NETWORKS["tiny"] = TinyNet

STEPS, CHECKPOINT_EVERY, LOG_EVERY = 40, 17, 10
LOGGED = [10, 17, 20, 30, 34, 40]


def tiny_settings(steps: int = STEPS, **training: Any) -> Settings:
    """Dropout, classes, accumulation and two averages: all that a resumed run can get wrong."""
    common: dict[str, Any] = {
        "network": {"name": "tiny", "num_classes": 10, "dropout": 0.1},
        "prediction": "v",
        "conditional": True,
        "steps": steps,
        "batch_size": 8,
        "optimizer": OptimizerSettings(
            learning_rate=1e-2, schedule="cosine", warmup=2, final_scale=0.1, clip=1.0
        ),
        "ema": (0.3, 0.99),
    }
    teacher = StageSettings(
        objective={"name": "denoising", "label_dropout": 0.2, "null_class": 10},
        shared=True,
        accumulate=2,
        **common,
    )
    student = StageSettings(
        objective={"name": "sfddm", "substeps": 2, "feature_weight": 0.5},
        teacher="teacher",
        init="teacher",
        grid=GridSettings(steps=2),
        method="sfddm",
        **common,
    )
    return Settings(
        name="tiny",
        data={"name": "digits"},
        schedule=ScheduleSettings(steps=16),
        stages={"teacher": teacher, "student": student},
        pipeline=("teacher", "student"),
        training=dataclasses.replace(
            TrainingSettings(
                log_every=LOG_EVERY, checkpoint_every=CHECKPOINT_EVERY, keep=10, loggers=()
            ),
            **training,
        ),
        evaluation=EvaluationSettings(enabled=False),
    )


def tiny_chain(**changes: Any) -> Settings:
    """A teacher of 16 levels, halved from 8 steps to 1: the middle student by RCFD's distance.

    The classifier has batch norms, so that its statistics are part of what is saved and resumed.
    """
    settings = tiny_settings()
    teacher = settings.stages["teacher"]
    optimizer = OptimizerSettings(learning_rate=1e-2, schedule="linear", clip=1.0)
    options = {"steps": STEPS, "batch_size": 8, "optimizer": optimizer}
    judged = {"classifier_weight": 1.0, "pixel_weight": 0.5, "beta": 0.1}
    classifier = StageSettings(
        objective={"name": "classification", "shift": 1},
        network={"name": "resnet", "width": 4, "blocks": (1,)},
        steps=20,
        batch_size=8,
        ema=(),
    )
    students = {
        **progressive(8, 4, **options),
        **progressive(
            4, 2, method="rcfd", teacher="pd_n4", classifier="classifier", loss=judged, **options
        ),
        **progressive(2, 1, teacher="rcfd_n2", **options),
    }
    students = {name: dataclasses.replace(s, **changes) for name, s in students.items()}
    stages = {
        "classifier": classifier,
        "teacher": dataclasses.replace(teacher, steps=20),
        **students,
    }
    return dataclasses.replace(settings, stages=stages, pipeline=tuple(stages))


def many_hosts_settings() -> Settings:
    """A teacher and two students that share out its levels, then samples without scores."""
    full = tiny_settings(steps=24, preview_every=17)
    students = dataclasses.replace(
        full.stages["student"],
        objective={"name": "o2mkd"},
        grid=GridSettings(),
        students=StudentsSettings(count=2, partition="timesteps"),
        method="o2mkd",
        samplers={"ddim": (4,)},
    )
    stages = {"teacher": full.stages["teacher"], "students": students}
    return dataclasses.replace(
        full,
        stages=stages,
        pipeline=tuple(stages),
        evaluation=EvaluationSettings(
            classifier="", samples=16, batch_size=16, full_steps=16, strip_images=2
        ),
    )


def one_stage(optimizer: OptimizerSettings | None = None, **changes: Any) -> Settings:
    """One stage that learns next to nothing, quickly."""
    full = tiny_settings(**changes)
    stage = dataclasses.replace(
        full.stages["teacher"],
        network={"name": "tiny"},
        objective={"name": "denoising"},
        conditional=False,
        accumulate=1,
        shared=False,
        optimizer=optimizer or OptimizerSettings(learning_rate=1e-3),
    )
    return dataclasses.replace(full, stages={"teacher": stage}, pipeline=("teacher",))


def config(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The tiny run as nested dictionaries, with some entries set by dotted name.

    `...` removes an entry.
    """
    plain = copy.deepcopy(to_plain(dataclasses.asdict(tiny_settings())))
    for name, value in (changes or {}).items():
        *groups, last = name.split(".")
        group = plain
        for key in groups:
            group = group[key]
        if value is ...:
            del group[last]
        else:
            group[last] = value
    return plain


def plans_of(settings: Settings, workdir: Path) -> dict[str, StagePlan]:
    """The stages of a run in `workdir`, with the cache beside it as on the command line."""
    facts = DataFacts.of(data.load(settings.data, "train"))
    plans = plan_stages(settings, facts, workdir, workdir.parent / "shared")
    return {plan.name: plan for plan in plans}


def saved_steps(plan: StagePlan) -> list[int]:
    """Steps with a finished checkpoint on disk."""
    names = [x.name for x in (plan.folder / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def saved_state(plan: StagePlan, step: int) -> TrainState:
    """The state in one checkpoint, read by Orbax alone."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        abstract_state(plan),
    )
    path = plan.folder / "checkpoints" / str(step) / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), like)


def differences(a: Any, b: Any) -> list[str]:
    """Paths of the leaves in which two trees are not the same bit for bit."""
    first, second = (dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (a, b))
    assert first.keys() == second.keys()
    return [
        jax.tree_util.keystr(path)
        for path in first
        if not (
            np.asarray(first[path]).dtype == np.asarray(second[path]).dtype
            and np.array_equal(first[path], second[path])
        )
    ]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file under a folder."""
    files = [x for x in folder.rglob("*") if x.is_file()] if folder.exists() else []
    return {str(x.relative_to(folder)): (x.stat().st_mtime_ns, x.read_bytes()) for x in files}
