"""Students of an EDM teacher's path on CIFAR-10: CD, ECT, SFD, PID and sCM, unconditional.

Numbers of updates, rates and batches are from the authors' released code. Our distances are in
pixels where theirs are LPIPS, because the weights of LPIPS cannot be had from a package; a feature
classifier's features are an option (`classifier_weight`, `distance="classifier"`).
"""

import dataclasses

from ddistill.recipes.cifar import CIFAR
from ddistill.recipes.common import Options, experiment, network, objective, scorer_stage
from ddistill.recipes.consistency import consistency
from ddistill.recipes.msd_paper import EDM_CIFAR, KARRAS
from ddistill.recipes.trajectory import from_noise, sfd
from ddistill.recipes.two_time import scm
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    Settings,
    StageSettings,
)

# Unconditional, as all four papers are on CIFAR-10.
_NETWORK = {**EDM_CIFAR, "num_classes": 0}
# For derivatives in time: c_noise = log(sigma) / 4 itself is the phase of the fastest sinusoid.
_SMOOTH = {**_NETWORK, "time_scale": 1.0}


def cd_cifar() -> Settings:
    """Consistency distillation (arXiv 2303.01469), by the settings of its code for CIFAR-10."""
    student = consistency(
        "cd",
        17,  # 18 points in the paper's counting
        steps=800_000,
        batch_size=512,
        optimizer=OptimizerSettings(name="radam", learning_rate=4e-4, warmup=19_531),
        network=network("unet", **_NETWORK),
        prediction="edm",
        ema=(0.9999,),
        mid_levels=(0.821,),
    )
    return _experiment("cd_cifar", {"cd": student})


def ect_cifar() -> Settings:
    """Easy consistency tuning (arXiv 2406.14548), its run of 200,000 updates on CIFAR-10."""
    student = consistency(
        "ect",
        0,  # all levels of the teacher
        steps=200_000,
        batch_size=128,
        optimizer=OptimizerSettings(name="radam", learning_rate=1e-4),
        network=network("unet", dropout=0.2, **_NETWORK),
        prediction="edm",
        ema=(0.9999,),
        mid_levels=(0.821,),
    )
    # The target of the last of 8 parts is 0.4 to 2 % below the noise: four times as many rows.
    return _experiment("ect_cifar", {"ect": student}, flip=False, rows=4 * KARRAS.steps)


def sfd_cifar() -> Settings:
    """SFD (arXiv 2409.19681) to two network evaluations, by the settings of its code."""
    student = sfd(
        3,
        loss={"substeps": 4, "analytic_first": True},
        steps=1_562,
        batch_size=128,
        optimizer=OptimizerSettings(
            learning_rate=5e-5, schedule="step", milestones=(0.5,), decay=0.1
        ),
        network=network("unet", **_NETWORK),
        prediction="edm",
        ema=(),
    )
    return _experiment("sfd_cifar", {"sfd_n3": student}, last=0.006)


def pid_cifar() -> Settings:
    """PID (arXiv 2411.08378), by the settings of its code for CIFAR-10."""
    student = from_noise(
        "pid",
        250,
        steps=800_000,
        batch_size=512,
        optimizer=OptimizerSettings(name="radam", learning_rate=2e-4),
        network=network("unet", **_NETWORK),
        prediction="edm",
        ema=(0.9999,),
    )
    return _experiment("pid_cifar", {"pid": student})


def scm_cifar() -> Settings:
    """sCD (arXiv 2410.11081) with the settings of FastGen's code for CIFAR-10."""
    student = scm(
        "scd",
        loss={"inverse_sigma": True},
        steps=400_000,
        batch_size=512,
        optimizer=OptimizerSettings(name="radam", learning_rate=1e-4, b2=0.99),
        network=network("unet", **_SMOOTH),
        prediction="edm",
        ema=(0.9999,),
        mid_levels=(0.821,),
    )
    return _experiment("scm_cifar", {"scd": student}, net=_SMOOTH)


def _experiment(
    name: str,
    students: Options,
    *,
    flip: bool = True,
    last: float = 0.002,
    rows: int = KARRAS.steps,
    net: Options = _NETWORK,
) -> Settings:
    """The teacher of EDM (arXiv 2206.00364) on `rows` levels from 80 to `last`, and students."""
    teacher = StageSettings(
        objective=objective("denoising", error="x0", weight="edm", levels="lognormal"),
        network=network("unet", dropout=0.13, **net),
        prediction="edm",
        steps=390_000,
        batch_size=512,
        optimizer=OptimizerSettings(learning_rate=1e-3, warmup=20_000, clip=1.0),
        ema=(0.9999,),
        shared=True,
    )
    schedule = dataclasses.replace(KARRAS, steps=rows)
    if last != 0.002:
        schedule = dataclasses.replace(schedule, options={"sigma_min": last})
    evaluation = EvaluationSettings(
        samples=10_000,
        batch_size=250,
        teacher_samplers={"ddim": (1, 2, 4, 8), "heun": (18,)},
        full_sampler="heun",
        full_steps=40,
    )
    stages = {"classifier": scorer_stage(), "teacher": teacher, **students}
    data = {**CIFAR, "flip": flip}
    return experiment(name, data, schedule, stages, evaluation, checkpoint_every=5000)
