"""Experiments on the embedded digits, small enough for any laptop."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ddistill.recipes.common import Options, edm_denoising, network, objective, teacher_stage
from ddistill.recipes.msd import msd, pairs_stage, tsm_stage
from ddistill.recipes.o2mkd import o2mkd
from ddistill.recipes.progressive import feature_halvings, progressive
from ddistill.recipes.sfddm import sfddm_default
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)


def digits(name: str, students: Mapping[str, StageSettings]) -> Settings:
    """An experiment on the embedded digits: a classifier, a teacher, and the given students.

    Experiments with the same seed share classifier and teacher and train them once.
    """
    classifier = StageSettings(
        objective=objective("classification", shift=1, label_smoothing=0.05),
        network=network("digits_classifier"),
        steps=600,
        batch_size=64,
        optimizer=OptimizerSettings(learning_rate=2e-3, schedule="cosine", warmup=50),
        ema=(0.99,),
        shared=True,
    )
    teacher = teacher_stage(
        digits_network(),
        steps=2500,
        batch_size=64,
        optimizer=annealed(2e-3, warmup=100),
        ema=(0.995,),
    )
    return Settings(
        name=name,
        data={"name": "digits"},
        schedule=ScheduleSettings(name="sigmoid_beta", steps=256),
        stages={"classifier": classifier, "teacher": teacher, **students},
        pipeline=("classifier", "teacher", *students),
        training=TrainingSettings(log_every=50, checkpoint_every=500),
        evaluation=EvaluationSettings(
            samples=1024,
            teacher_samplers={"ddim": (1, 2, 4, 8, 16, 32)},
            full_sampler="ddim",
            full_steps=256,
            tuned_on=(0,),
        ),
    )


def digits_network(width: int = 16) -> Options:
    """The U-Net of the digits' teacher, or the same U-Net with another width."""
    return network(
        "unet",
        channels=width,
        multipliers=(1, 2),
        blocks=1,
        attention=(4,),
        head_dim=min(16, 2 * width),
        norm_groups=min(8, width),
        out_channels=1,
    )


def annealed(rate: float, warmup: int = 50, final_scale: float = 0.02) -> OptimizerSettings:
    """Adam with a warm-up, a cosine to `final_scale` times the rate, and clipping at norm 1."""
    return OptimizerSettings(
        learning_rate=rate, schedule="cosine", warmup=warmup, final_scale=final_scale, clip=1.0
    )


# Of every halving on digits.
HALVING: Options = {
    "steps": 400,
    "steps_last": 800,
    "batch_size": 64,
    "optimizer": annealed(2e-3),
    "shared": True,
}


def digits_feature_classifier() -> StageSettings:
    """A classifier for the feature distance; another classifier scores the samples.

    A small version of CFD's classifier (arXiv 2211.12039): a residual network with batch norm,
    pooled features after a ReLU, trained by SGD.
    """
    return StageSettings(
        objective=objective("classification", shift=1),
        network=network("resnet", width=16, blocks=(1, 1, 1)),
        steps=600,
        batch_size=64,
        optimizer=OptimizerSettings(
            name="sgd", learning_rate=0.1, schedule="step", warmup=20, weight_decay=5e-4
        ),
        ema=(),
        shared=True,
    )


def digits_students() -> dict[str, StageSettings]:
    """SFDDM students of 4, 2 and 1 steps; each starts from the student before it.

    Experiments with the same seed share them and train them once.
    """
    return {
        "sfddm_n4": digits_student(4, steps=700, substeps=2),
        "sfddm_n2": digits_student(2, steps=1200, substeps=3, init="sfddm_n4"),
        "sfddm_n1": digits_student(
            1, steps=500, substeps=6, init="sfddm_n2", loss={"lookback": False}
        ),
    }


def digits_student(
    levels: int, *, substeps: int = 8, loss: Options | None = None, **stage: Any
) -> StageSettings:
    """Our SFDDM student on digits, see `sfddm_default`; shared between experiments."""
    options = {"steps": 700, "batch_size": 64, "optimizer": annealed(3e-3), "shared": True, **stage}
    return sfddm_default(levels, substeps=substeps, loss=loss, **options)


def digits_halvings(start: int, end: int, **changes: Any) -> dict[str, StageSettings]:
    """A chain of `progressive` on digits, shared between experiments."""
    return progressive(start, end, **{**HALVING, **changes})


def digits_chain(method: str) -> dict[str, StageSettings]:
    """A feature classifier, PD's halvings from 32 to 8 steps, then halvings in its features to 1.

    Args:
      method: "cfd", "rcfd" or "rdd"; the later stages are called METHOD_nN.
    """
    classifier = digits_feature_classifier()
    loss: Options = {}
    later: Options = {}
    if method == "rdd":
        loss = {"queue_rows": 4096, "contrast_rows": 1024}
        later = {"optimizers": {"relation_head": OptimizerSettings(learning_rate=1e-3)}}
    chain = feature_halvings(method, (32, 8, 1), loss, later, **HALVING)
    return {"feature_classifier": classifier, **chain}


def digits_specialists(
    width: int, counts: Sequence[int], *, warmup: int, updates: int, **changes: Any
) -> dict[str, StageSettings]:
    """For each K of `counts`, K students that divide the levels, at equal total updates.

    Args:
      width: of the students.
      counts: the values of K; 1 is plain distillation, one student of all levels.
      warmup: updates of the student of all levels from which the others start.
      updates: of all K students together.
      **changes: further arguments of `ddistill.recipes.o2mkd.o2mkd`.
    """
    stages: dict[str, StageSettings] = {}
    for count in counts:
        stages |= o2mkd(
            count,
            steps=updates // count,
            batch_size=64,
            optimizer=annealed(2e-3, warmup=20),
            network=digits_network(width),
            prediction="v",
            warmup_steps=warmup,
            name=f"_w{width}",
            loss={"error": "v"},
            ema=(0.995,),
            shared=True,
            **{"samplers": {"ddim": (16,), "dpm_solver_pp": (8,)}, **changes},
        )
    return stages


def digits_conditional(name: str, students: Mapping[str, StageSettings]) -> Settings:
    """An experiment with a class-conditional EDM teacher (arXiv 2206.00364) of the digits.

    A tenth of the labels is dropped, so that samplers can use classifier-free guidance.

    Args:
      name: of the experiment.
      students: stages that learn from the stage "teacher".
    """
    settings = digits(name, students)
    teacher = dataclasses.replace(
        settings.stages["teacher"],
        objective=edm_denoising(10),
        network=digits_conditional_network(),
        prediction="edm",
        conditional=True,
    )
    return dataclasses.replace(
        settings,
        schedule=ScheduleSettings(name="karras", steps=256),
        stages={**settings.stages, "teacher": teacher},
        evaluation=dataclasses.replace(
            settings.evaluation,
            teacher_samplers={"ddim": (1, 4, 16), "heun": (5, 9, 18)},
            full_sampler="heun",
            full_steps=40,
        ),
    )


def digits_conditional_network(width: int = 16) -> Options:
    """The U-Net of `digits_conditional`'s teacher, or the same U-Net with another width."""
    # c_noise = ln(sigma) / 4 is between -1.6 and 1.1.
    return {**digits_network(width), "num_classes": 10, "time_scale": 200.0}


def digits_msd(counts: Sequence[int], **changes: Any) -> dict[str, StageSettings]:
    """Pairs, and for each K of `counts` the K one-step students of the ten digits: DM, then ADM.

    Args:
      counts: the values of K.
      **changes: arguments of `ddistill.recipes.msd.msd`.
    """
    optimizer = OptimizerSettings(
        name="adamw", learning_rate=3e-4, schedule="cosine", warmup=20, final_scale=0.1, clip=1.0
    )
    options = {
        "steps": 1000,
        "second": {
            "steps": 400,
            "optimizer": dataclasses.replace(optimizer, learning_rate=1e-4),
        },
        "batch_size": 64,
        "optimizer": optimizer,
        # A student of two classes loses most modes if it regresses on the pairs of all classes: at
        # K = 5 and 600 updates, FD 1.96 and recall 0.50, compared with FD 0.77 and recall 0.77 with
        # the pairs of its own classes (seed 0).
        "dm": {"filter_pairs": True},
        "adm": {
            "features_of": "teacher",
            "gan_weight": 3e-3,
            "discriminator_weight": 1.0,
            "student_every": 1,
        },
        "ema": (0.99,),
        **changes,
    }
    stages = {"pairs": pairs_stage(4000, 200, 18)}
    for count in counts:
        stages |= msd(count, **options)
    return stages


def digits_small_msd(
    width: int, counts: Sequence[int], fresh: Sequence[int] = (1,), **changes: Any
) -> dict[str, StageSettings]:
    """`digits_msd` with narrower students, from a TSM student and from fresh weights.

    Args:
      width: of the students.
      counts: the values of K for students that start from a TSM student.
      fresh: the values of K for students that start from fresh weights.
      **changes: as in `digits_msd`.
    """
    net: Options = {"network": digits_conditional_network(width), "prediction": "edm"}
    first = digits_msd((), **changes)
    tsm = tsm_stage(
        **net,
        steps=1500,
        batch_size=64,
        optimizer=annealed(2e-3, final_scale=0.1),
        ema=(0.99,),
    )
    without = {"init": "fresh", "name": f"_fresh_w{width}", "variant": "fresh"}
    return {
        **first,
        f"tsm_w{width}": tsm,
        **digits_msd(counts, init=f"tsm_w{width}", name=f"_w{width}", **net, **changes),
        **digits_msd(fresh, **without, **net, **changes),
    }
