"""Experiments on the embedded digits with the methods that follow a teacher's path, and DisBack."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddistill.recipes.common import Options
from ddistill.recipes.consistency import consistency
from ddistill.recipes.digits import HALVING, annealed, digits, digits_halvings
from ddistill.recipes.disback import disback
from ddistill.recipes.flow import catch_up, flow_teacher
from ddistill.recipes.progressive import DDIL, progressive
from ddistill.recipes.trajectory import from_noise, sfd, sfd_v
from ddistill.recipes.two_time import scm, two_time
from ddistill.settings import OptimizerSettings, ScheduleSettings, Settings, StageSettings


def digits_consistency(method: str, **changes: Any) -> dict[str, StageSettings]:
    """A consistency model on digits, shared between experiments.

    Args:
      method: as in `ddistill.recipes.consistency.consistency`. LCM takes steps over 4 of 64 levels,
        the others over one of 32.
      **changes: its other arguments.
    """
    options = {**_student(), "levels": 32, "samplers": {"renoise": (1, 2, 4)}}
    if method == "lcm":
        options |= {"levels": 64, "loss": {"level_skip": 4}}
    return {method: consistency(method, **{**options, **changes})}


def _student() -> Options:
    """Length and optimiser of a student that is shared between experiments."""
    return {
        "steps": 2400,
        "batch_size": 64,
        "optimizer": annealed(1e-3),
        "ema": (0.995,),
        "shared": True,
    }


def digits_sfd() -> dict[str, StageSettings]:
    """SFD students of 4, 2 and 1 steps on digits; each starts from the student before it."""
    options: Options = {
        "batch_size": 64,
        "optimizer": annealed(1e-3),
        "loss": {"substeps": 4},
        "shared": True,
    }
    return {
        "sfd_n4": sfd(4, steps=300, **options),
        "sfd_n2": sfd(2, steps=500, init="sfd_n4", **options),
        "sfd_n1": sfd(1, steps=1000, init="sfd_n2", **options),
    }


def digits_sfd_v() -> dict[str, StageSettings]:
    """One student of SFD-v for 4, 3, 2 and 1 steps on digits."""
    stage = sfd_v(
        (1, 2, 3, 4),
        steps=2000,
        batch_size=64,
        optimizer=annealed(1e-3),
        loss={"substeps": 4},
        shared=True,
    )
    return {"sfd_v": stage}


def digits_from_noise(method: str) -> dict[str, StageSettings]:
    """A student of BOOT or PID on digits.

    Args:
      method: "boot" or "pid".
    """
    stage = from_noise(
        method, 32, steps=2400, batch_size=64, optimizer=annealed(1e-3), ema=(0.995,), shared=True
    )
    return {method: stage}


def digits_disback() -> dict[str, StageSettings]:
    """A student of DisBack on digits, on a path of four checkpoints, and one of DMD2.

    Both have equal objectives and numbers of updates.
    """
    optimizer = OptimizerSettings(name="adamw", learning_rate=3e-4, warmup=20, clip=1.0)
    options: Options = {
        "batch_size": 64,
        "optimizer": optimizer,
        "loss": {
            "features_of": "teacher",
            "gan_weight": 3e-3,
            "discriminator_weight": 1.0,
            "student_every": 1,
        },
        "ema": (0.99,),
    }
    path = {"steps": 200, "batch_size": 64, "optimizer": optimizer}
    return {
        **disback(4, interval=100, path=path, steps=1000, **options),
        **disback(0, name="dmd2", method="dmd2", steps=1400, **options),
    }


def digits_flow(
    name: str, students: Mapping[str, StageSettings], time_scale: float = 1.0
) -> Settings:
    """An experiment with a flow-matching teacher (arXiv 2210.02747) of the digits.

    Args:
      name: of the experiment.
      students: stages that learn from the stage "teacher".
      time_scale: of the teacher's network. Times go up to 1000; students that are differentiated
        in time need a network that is smooth between the rows of the levels.
    """
    settings = digits(name, students)
    theirs = settings.stages["teacher"]
    teacher = flow_teacher(
        {**theirs.network, "time_scale": time_scale},
        steps=theirs.steps,
        batch_size=theirs.batch_size,
        optimizer=theirs.optimizer,
        ema=theirs.ema,
    )
    return dataclasses.replace(
        settings,
        schedule=ScheduleSettings(name="linear_path", steps=256),
        stages={**settings.stages, "teacher": teacher},
        evaluation=dataclasses.replace(
            settings.evaluation,
            teacher_samplers={"ddim": (1, 2, 4, 8, 16), "heun_flow": (2, 4, 8)},
            full_sampler="heun_flow",
            full_steps=64,
        ),
    )


# 5 radians of the fastest sinusoid between the clean end and noise.
SMOOTH_TIME = 0.005


# With the teacher's velocities few examples are needed at r = t, where the student starts exact.
# Logit-normal times of the papers would hardly reach pure noise in so few updates.
_MEANFLOW: Options = {"time_law": "uniform", "adaptive_power": 0.75, "instant_share": 0.5}
_OF_METHOD: dict[str, Options] = {
    "meanflow": _MEANFLOW,
    "meanflow_distilled": {**_MEANFLOW, "adaptive_power": 0.5, "instant_share": 0.25},
}


def digits_two_time(method: str, **changes: Any) -> dict[str, StageSettings]:
    """A two-time student on digits for any number of steps.

    Args:
      method: as in `ddistill.recipes.two_time.two_time`.
      **changes: its other arguments.
    """
    options = {**_student(), **changes}
    options["loss"] = {**_OF_METHOD.get(method, {}), **changes.get("loss", {})}
    return {method: two_time(method, **options)}


def digits_scm(method: str, **changes: Any) -> dict[str, StageSettings]:
    """A consistency model in continuous time on digits.

    Args:
      method: "scd", "sct" or "rcm".
      **changes: arguments of `ddistill.recipes.two_time.scm`.
    """
    options = {**_student(), "samplers": {"renoise": (1, 2, 4)}, **changes}
    loss = {"tangent_warmup": 400, "sigma_data": 0.75, "log_mean": 0.0, "log_std": 1.6}
    if method == "rcm":
        # Twice the released weight beside distribution matching.
        loss |= {"student_every": 2, "consistency_weight": 100.0}
    options["loss"] = {**loss, **changes.get("loss", {})}
    return {method: scm(method, **options)}


def digits_catch_up(**changes: Any) -> dict[str, StageSettings]:
    """Catch-Up students on digits, with one and two heads, shared between experiments.

    Args:
      **changes: arguments of `ddistill.recipes.flow.catch_up`.
    """
    options = {
        "steps": 2400,
        "batch_size": 64,
        "optimizer": annealed(1e-3),
        "ema": (0.995,),
        "samplers": {"ddim": (1, 2, 4, 8), "heun_flow": (2, 4)},
        "shared": True,
        **changes,
    }
    return {"catch_up": catch_up(1, **options), "catch_up_rk2": catch_up(2, **options)}


def digits_ddil() -> dict[str, StageSettings]:
    """PD's halvings from 16 steps to 1, and CD, both with DDIL's states (arXiv 2410.11971)."""
    halved = progressive(16, 1, teacher="pd_n16", loss=DDIL, method="ddil", **HALVING)
    # Its sampler takes up to 4 of the 32 steps.
    consistent = digits_consistency("cd", loss={**DDIL, "student_walk": 4})["cd"]
    return {
        **digits_halvings(32, 16),
        **halved,
        "ddil_cd": dataclasses.replace(consistent, method="ddil_cd"),
    }
