"""Students for any number of steps: MeanFlow (arXiv 2505.13447), shortcut models, sCM and rCM."""

from typing import Any

from ddistill.errors import check_choice
from ddistill.networks.dit import named_size
from ddistill.recipes.cifar import CIFAR
from ddistill.recipes.common import Options, experiment, network, objective, scorer_stage
from ddistill.recipes.flow import flow_teacher
from ddistill.recipes.msd_paper import EDM_CIFAR
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)

# EDM's size, and times in [0, 1]: derivatives in time need a network that is smooth in it.
_NETWORK: Options = {**EDM_CIFAR, "num_classes": 0, "time_scale": 1e-3}

# Objective and hyperparameters by method, where they differ from the objective's defaults.
_TWO_TIME: dict[str, tuple[str, Options]] = {
    "meanflow": ("meanflow", {}),
    "meanflow_distilled": ("meanflow", {"velocity_from": "teacher"}),
    "shortcut": ("shortcut", {}),
    "shortcut_distilled": ("shortcut", {"velocity_from": "teacher"}),
}
_SCM: dict[str, tuple[str, Options]] = {
    "scd": ("scm", {}),
    "sct": ("scm", {"velocity_from": "data", "log_std": 1.8}),
    "rcm": ("rcm", {}),
}


def two_time(
    method: str, *, levels: int = 0, loss: Options | None = None, **stage: Any
) -> StageSettings:
    """A two-time student of the stage "teacher": one network for any number of steps.

    Args:
      method: "meanflow" or "shortcut", from data, or either with "_distilled", from the teacher's
        velocity.
      levels: N, the rows of the teacher's levels on which times are drawn; 0 for all of them.
      loss: further hyperparameters of the objective.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required. `init`
        is "teacher" by default; with "fresh" the student is trained from scratch.

    Raises:
      ConfigError: there is no such method.
    """
    check_choice("two_time: method", method, _TWO_TIME)
    name, preset = _TWO_TIME[method]
    options = {"init": "teacher", "ema": (0.999,), "samplers": {"ddim": (1, 2, 4, 8)}, **stage}
    return StageSettings(
        objective=objective(name, **{**preset, **(loss or {})}),
        teacher="teacher",
        grid=GridSettings(steps=levels),
        method=method,
        **options,
    )


def scm(method: str, *, loss: Options | None = None, **stage: Any) -> StageSettings:
    """A consistency model in continuous time on all levels of the stage "teacher".

    Args:
      method: "scd", along the teacher's path; "sct", along that of the data; "rcm", sCD with
        distribution matching.
      loss: further hyperparameters of `ddistill.objectives.scm` or `ddistill.objectives.rcm`.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required.

    Raises:
      ConfigError: there is no such method.
    """
    check_choice("scm: method", method, _SCM)
    name, preset = _SCM[method]
    options = {"init": "teacher", "ema": (0.999,), "samplers": {"renoise": (1, 2)}, **stage}
    return StageSettings(
        objective=objective(name, **{**preset, **(loss or {})}),
        teacher="teacher",
        grid=GridSettings(steps=0),
        method=method,
        **options,
    )


def meanflow_cifar(net: Options | None = None) -> Settings:
    """MeanFlow on CIFAR-10 from scratch, with the better settings of the authors' second code.

    Times logit-normal with mean -0.6 and deviation 1.6, ends with mean -4, r = t for three quarters
    of the examples; p = 0.75; Adam 6e-4 after 200 epochs of warm-up, batches of 1024, dropout 0.2,
    average at 0.9999. The stage "teacher" is flow matching with the same network; it is not called.

    Args:
      net: another network.
    """
    smooth = net or network("unet", dropout=0.2, **_NETWORK)
    options: Options = {
        "batch_size": 1024,
        "optimizer": OptimizerSettings(name="adam", learning_rate=6e-4, warmup=9766),
        "ema": (0.9999,),
    }
    law = {
        "time_mean": -0.6,
        "time_std": 1.6,
        "end_rule": "below",
        "end_mean": -4.0,
        "end_std": 1.6,
    }
    student = two_time(
        "meanflow",
        init="fresh",
        steps=800_000,
        loss={**law, "adaptive_power": 0.75, "adaptive_floor": 1e-3},
        samplers={"ddim": (1, 2, 4)},
        **options,
    )
    flow = {"levels": "logit_normal", "time_mean": -0.6, "time_std": 1.6}
    stages = {
        "classifier": scorer_stage(),
        "teacher": flow_teacher(smooth, loss=flow, steps=400_000, **options),
        "meanflow": student,
    }
    evaluation = EvaluationSettings(
        samples=10_000,
        batch_size=250,
        teacher_samplers={"ddim": (1, 2, 4), "heun_flow": (8,)},
        full_sampler="heun_flow",
        full_steps=64,
    )
    schedule = ScheduleSettings(name="linear_path", steps=1024)
    return experiment("meanflow_cifar", CIFAR, schedule, stages, evaluation, 5000)


# DiT of two blocks on single-channel pictures, for the smoke variant.
_SMALL_DIT: Options = {"patch_size": 2, "width": 32, "depth": 2, "heads": 2, "out_channels": 1}


def meanflow_imagenet256(size: str = "XL/2") -> Settings:
    """MeanFlow on latents of ImageNet at 256 pixels, class-conditional, as its authors train it.

    DiT on latents of 32x32x4, 240 epochs of batch 256, Adam 1e-4 with beta2 0.95, average at
    0.9999, a tenth of the labels dropped, guidance w = 1 and k = 0.5 in training. The stage
    "teacher" is flow matching with the same network; it is not called.

    Args:
      size: of the DiT, such as "XL/2"; "small" for digits.
    """
    shape = _SMALL_DIT if size == "small" else named_size(size)
    net = network("dit", num_classes=1000, time_scale=1e-3, **shape)
    options: Options = {
        "steps": 1_200_000,
        "batch_size": 256,
        "conditional": True,
        "optimizer": OptimizerSettings(name="adam", learning_rate=1e-4, b2=0.95),
        "ema": (0.9999,),
    }
    dropped = {"label_dropout": 0.1, "null_class": 1000}
    flow = {"levels": "logit_normal", "time_mean": -0.4, **dropped}
    student = two_time(
        "meanflow",
        init="fresh",
        loss={"own_guidance": 0.5, **dropped},
        samplers={"ddim": (1, 2)},
        **options,
    )
    evaluation = EvaluationSettings(
        samples=10_000,
        batch_size=100,
        clip=0.0,
        guidance=2.0,  # w / (1 - k), of the student's images
        teacher_samplers={"ddim": (16,)},
        full_sampler="heun_flow",
        full_steps=32,
    )
    stages = {"teacher": flow_teacher(net, loss=flow, **options), "meanflow": student}
    data = {"name": "latents", "path": "imagenet256"}
    schedule = ScheduleSettings(name="linear_path", steps=1024)
    return experiment("meanflow_imagenet256", data, schedule, stages, evaluation, 5000)
