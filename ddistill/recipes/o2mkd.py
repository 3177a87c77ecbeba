"""O2MKD (arXiv 2410.04191): a shared warm-up, then one student for each range of noise levels."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from ddistill.recipes.common import (
    Budget,
    Options,
    experiment,
    network,
    objective,
    scorer_stage,
    teacher_stage,
)
from ddistill.settings import (
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    StudentsSettings,
)

# DDPM's networks (arXiv 2006.11239): 35.7 M parameters at 32 pixels, 113.7 M at 256.
DDPM_32 = {"multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,)}
DDPM_256 = {"multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (16,)}


def o2mkd(
    count: int,
    *,
    warmup_steps: int = 0,
    start: str = "",
    name: str = "",
    loss: Options | None = None,
    **stage: Any,
) -> dict[str, StageSettings]:
    """Stages of K students, each for a range of the noise levels of the stage "teacher".

    Students with the teacher's network start from its weights. Narrower students start from one
    student that was trained on all levels: without it, a student that only sees its own range
    spends its updates on learning the appearance of images in general.

    Args:
      count: K.
      warmup_steps: updates of the student of all levels, if the stages have a `network`.
      start: an earlier stage of that network to start from, in place of a warm-up.
      name: suffix of the stages' names, "o2mkd_warmup{name}" and "o2mkd{name}_k{count}".
      loss: an objective's name and its hyperparameters; O2MKD's own by default.
      **stage: fields of `StageSettings`; `steps` (of every student after the warm-up), `batch_size`
        and `optimizer` are required. `samplers` and `sample_guidance` apply to the K students only,
        and `students` is a mapping of fields of `StudentsSettings`.
    """
    students = stage.pop("students", {})
    scored = {key: stage.pop(key) for key in ("samplers", "sample_guidance") if key in stage}
    specialist = StageSettings(
        objective=objective(**{"name": "o2mkd", **(loss or {})}), teacher="teacher", **stage
    )
    stages, init = {}, start or "teacher"
    if specialist.network and not start:
        init = f"o2mkd_warmup{name}"
        stages[init] = dataclasses.replace(specialist, steps=warmup_steps)
    stages[f"o2mkd{name}_k{count}"] = dataclasses.replace(
        specialist,
        init=init,
        students=StudentsSettings(count=count, partition="timesteps", **students),
        method="o2mkd",
        **scored,
    )
    return stages


@dataclass(frozen=True)
class O2MKDPaper:
    """The differences between our experiments after arXiv 2410.04191.

    Attributes:
      data: data settings.
      network: the options of the U-Net except its width.
      teacher: length of the teacher's training.
      rate: learning rate of the teacher.
      students: updates of all students together, a quarter of them for the shared student, and the
        batch size of each student.
    """

    data: Options
    network: Options
    teacher: Budget
    rate: float
    students: Budget


def o2mkd_256(name: str, folder: str, updates: int) -> Settings:
    """O2MKD on a folder of images at 256 x 256, with `updates` of the teacher."""
    data = {"name": "folder", "path": f"data/{folder}", "image_size": 256, "flip": True}
    return o2mkd_paper(
        name, O2MKDPaper(data, DDPM_256, Budget(updates, 64), 2e-5, Budget(400_000, 64))
    )


def o2mkd_paper(
    name: str, paper: O2MKDPaper, *, width: int = 64, count: int = 4, scored: bool = False
) -> Settings:
    """O2MKD from a DDPM teacher of width 128 with T = 1000 linear betas and eps-prediction.

    The paper (arXiv 2410.04191) names the data and the teacher. We found no widths, K and lengths;
    they are our choice: Adam at 2e-4 after 5,000 warm-up steps, global norm 1, average 0.9999.

    Args:
      name: of the experiment.
      paper: which experiment.
      width: of the students.
      count: K.
      scored: whether a classifier of 32x32 images scores the samples.
    """
    adam = OptimizerSettings(learning_rate=2e-4, warmup=5000, clip=1.0)
    total, samplers = paper.students.updates, {"ddim": (100,), "dpm_solver_pp": (20,)}
    teacher = teacher_stage(
        network("unet", dropout=0.1, **paper.network),
        steps=paper.teacher.updates,
        batch_size=paper.teacher.batch_size,
        prediction="eps",
        error="eps",
        optimizer=dataclasses.replace(adam, learning_rate=paper.rate),
        ema=(0.9999,),
    )
    students = o2mkd(
        count,
        name=f"_w{width}",
        warmup_steps=total // 4,
        steps=(total - total // 4) // count,
        batch_size=paper.students.batch_size,
        optimizer=adam,
        samplers=samplers,
        network=network("unet", channels=width, **paper.network),
        prediction="eps",
        ema=(0.9999,),
    )
    stages = {"teacher": teacher, **students}
    if scored:
        stages = {"classifier": scorer_stage(), **stages}
    evaluation = EvaluationSettings(
        samples=10_000 if scored else 256,
        batch_size=100,
        teacher_samplers=samplers,
        full_sampler="ddim",
        full_steps=1000,
    )
    schedule = ScheduleSettings(name="linear_beta", steps=1000)
    return experiment(name, paper.data, schedule, stages, evaluation, checkpoint_every=5000)
