"""The experiment of benchmarks/gpu_day.py: one teacher and the students of four methods."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddistill import recipes
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)

STUDENT_STEPS = 4  # of SFDDM's and PD's students
PAIR_STEPS = 18  # of the sampler that makes MSD's pairs


@dataclass(frozen=True)
class Size:
    """The size of networks and batches.

    Attributes:
      side: image side in pixels.
      network: name and options of the teacher's network.
      narrow: options in which the students of O2MKD differ from it.
      width: of the classifier that scores samples.
      batch: images of one student in one update.
      halved: steps of the teacher that PD halves down to `STUDENT_STEPS`.
      steps: of the samplers of the teacher and of O2MKD's students.
      pairs: number of pairs for MSD.
      samples: number of samples that are scored.
      most: the largest number of updates of a stage.
    """

    side: int
    network: Mapping[str, Any]
    narrow: Mapping[str, Any]
    width: int
    batch: int
    halved: int
    steps: tuple[int, ...]
    pairs: int
    samples: int
    most: int


SIZES = {
    "full": Size(
        side=32,
        network={
            "name": "unet",
            "channels": 96,
            "multipliers": (1, 2, 2),
            "blocks": 1,
            "attention": (16,),
            "head_dim": 32,
            "norm_groups": 16,
            "dtype": "bfloat16",
        },
        narrow={"channels": 48},
        width=64,
        batch=256,
        halved=32,
        steps=(STUDENT_STEPS, 16),
        pairs=4096,
        samples=2048,
        most=20_000,
    ),
    "tiny": Size(
        side=8,
        network={
            "name": "unet",
            "channels": 8,
            "multipliers": (1,),
            "blocks": 1,
            "attention": (),
            "mid_attention": False,
            "norm_groups": 2,
        },
        narrow={"channels": 4},
        width=4,
        batch=4,
        halved=8,
        steps=(STUDENT_STEPS,),
        pairs=40,
        samples=16,
        most=3,
    ),
}


@dataclass(frozen=True)
class Share:
    """What the driver knows of a stage.

    Attributes:
      weight: its share of the time, relative to the other stages.
      calls: cost of an update of all students, in forward passes of the teacher on one image for
        each image of a batch; 0 for stages of a fixed length.
      least: the smallest number of updates.
    """

    weight: float
    calls: float
    least: int = 8


# A backward pass costs two forward passes, and a student of half the width a quarter of each.
SHARES = {
    "classifier": Share(0.0, 0.0),
    "teacher": Share(4.0, 3.0),
    f"sfddm_n{STUDENT_STEPS}": Share(1.2, 6.0),
    **{f"pd_n{n}": Share(0.5, 5.0) for n in (16, 8, 4)},
    "o2mkd_warmup": Share(0.6, 1.75),
    "o2mkd_k4": Share(1.0, 7.0),
    "pairs": Share(0.0, 0.0),
    "dm_k2": Share(1.5, 22.0),
}
CLASSIFIER_STEPS = 1500


def settings(size: Size, data: str, classes: int, steps: Mapping[str, int]) -> Settings:
    """The whole experiment.

    Args:
      size: of networks and batches.
      data: folder of images.
      classes: number of its classes, at least 2.
      steps: updates by stage; 1 for a stage that is not named.
    """
    net = recipes.network(num_classes=classes, **size.network)
    rate = OptimizerSettings(
        learning_rate=4e-4, schedule="cosine", warmup=20, final_scale=0.05, clip=1.0
    )
    common: dict[str, Any] = {
        "batch_size": size.batch,
        "optimizer": rate,
        "steps": 1,
        "conditional": True,
    }
    classifier = dataclasses.replace(
        recipes.scorer_stage(),
        network=recipes.network(
            "digits_classifier",
            width=size.width,
            num_classes=classes,
            norm_groups=min(8, size.width),
        ),
        batch_size=size.batch,
    )
    small = {**common, "network": {**net, **size.narrow}, "prediction": "v", "ema": (0.99,)}
    matching: dict[str, Any] = {
        "batch_size": size.batch,
        "optimizer": OptimizerSettings(name="adamw", learning_rate=1e-4, warmup=20, clip=1.0),
        "steps": 1,
        "ema": (0.99,),
    }
    stages: dict[str, StageSettings] = {
        "classifier": classifier,
        "teacher": recipes.teacher_stage(net, **{**common, "ema": (0.995,)}),
        f"sfddm_n{STUDENT_STEPS}": _sfddm(common),
        **recipes.progressive(size.halved, STUDENT_STEPS, **common),
        **recipes.o2mkd(4, samplers={"ddim": size.steps[-1:]}, loss={"error": "v"}, **small),
        "pairs": recipes.pairs_stage(size.pairs, min(size.pairs, 1024), PAIR_STEPS, sampler="ddim"),
        **recipes.msd(2, dm={"filter_pairs": True}, **matching),
    }
    fixed = {"pairs": stages["pairs"].steps}
    stages = {
        name: _of_length(stage, fixed.get(name, steps.get(name, 1)))
        for name, stage in stages.items()
    }
    full = size.side >= 32
    return Settings(
        name="gpu_day",
        data={"name": "folder", "path": data, "image_size": size.side, "flip": full},
        schedule=ScheduleSettings(name="sigmoid_beta", steps=256),
        stages=stages,
        pipeline=tuple(stages),
        training=TrainingSettings(log_every=50, checkpoint_every=1_000_000, loggers=()),
        evaluation=EvaluationSettings(
            samples=size.samples,
            batch_size=min(512, size.samples),
            teacher_samplers={"ddim": size.steps},
            full_steps=64 if full else 8,
            grid_images=16,
            strip_images=6,
        ),
    )


def _sfddm(common: Mapping[str, Any]) -> StageSettings:
    """SFDDM's student with two teacher steps folded into one."""
    return recipes.digits_student(STUDENT_STEPS, substeps=2, **common)


def _of_length(stage: StageSettings, steps: int) -> StageSettings:
    """A stage of the run's own with so many updates, at most a quarter of them for the warm-up."""
    optimizer = dataclasses.replace(stage.optimizer, warmup=min(stage.optimizer.warmup, steps // 4))
    return dataclasses.replace(stage, steps=steps, optimizer=optimizer, shared=False)
