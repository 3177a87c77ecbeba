"""Flow matching (arXiv 2210.02747), and Catch-Up students of it (arXiv 2305.10769)."""

from typing import Any

from ddistill.errors import check_choice
from ddistill.recipes.cifar import CIFAR
from ddistill.recipes.common import Options, experiment, network, objective, scorer_stage
from ddistill.settings import (
    EvaluationSettings,
    GridSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)

_METHODS = {1: "catch_up", 2: "catch_up_rk2"}


def flow_teacher(net: Options, *, loss: Options | None = None, **stage: Any) -> StageSettings:
    """A teacher trained by flow matching; the schedule of its experiment is "linear_path".

    Args:
      net: the network's name and options, see `ddistill.recipes.common.network`.
      loss: further hyperparameters of `ddistill.objectives.denoising.Denoising`, such as
        `levels="logit_normal"`.
      **stage: fields of `StageSettings`; `steps` and `batch_size` are required.
    """
    return StageSettings(
        objective=objective("denoising", **{"error": "flow", **(loss or {})}),
        network=net,
        **{"prediction": "flow", "shared": True, **stage},
    )


def catch_up(order: int, *, loss: Options | None = None, **stage: Any) -> StageSettings:
    """A Catch-Up student on all levels of the stage "teacher", which itself is not called.

    Args:
      order: 1 for Euler's method, 2 for Heun's with a second head.
      loss: further hyperparameters of `ddistill.objectives.catch_up.CatchUp`.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required. `init`
        is "teacher" by default; with "fresh" the student is trained from scratch, as in the paper.

    Raises:
      ConfigError: there is no such order.
    """
    check_choice("catch_up: order", order, _METHODS)
    return StageSettings(
        objective=objective("catch_up", runge_kutta=order, **(loss or {})),
        teacher="teacher",
        grid=GridSettings(steps=0),
        method=_METHODS[order],
        **{"init": "teacher", "ema": (0.999,), **stage},
    )


def catch_up_cifar(net: Options | None = None) -> Settings:
    """Catch-Up on CIFAR-10 with the released settings, and flow matching with the same ones.

    EDM's DDPM++ of 55.7 M parameters with dropout 0.13, Adam 2e-4 after a warm-up of 5,000 updates,
    500,000 updates of 128 images, average at 0.9999; steps of up to a sixteenth, two heads. Noise
    and images are independent; the encoder of the released code is left out.

    Args:
      net: another network.
    """
    options: Options = {
        "steps": 500_000,
        "batch_size": 128,
        "optimizer": OptimizerSettings(name="adam", learning_rate=2e-4, warmup=5000),
        "ema": (0.9999,),
    }
    stages = {
        "classifier": scorer_stage(),
        "teacher": flow_teacher(net or network("song", dropout=0.13), **options),
        "catch_up": catch_up(
            2, init="fresh", samplers={"ddim": (1, 2, 4, 16), "heun_flow": (8,)}, **options
        ),
    }
    evaluation = EvaluationSettings(
        samples=10_000,
        batch_size=250,
        teacher_samplers={"ddim": (1, 2, 4, 16), "heun_flow": (8,)},
        full_sampler="heun_flow",
        full_steps=64,
    )
    schedule = ScheduleSettings(name="linear_path", steps=1024)
    return experiment("cud_cifar", CIFAR, schedule, stages, evaluation)
