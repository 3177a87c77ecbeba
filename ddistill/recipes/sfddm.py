"""SFDDM (arXiv 2405.14961): our student, the released one, and the four published experiments."""

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
    GridSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
)


def sfddm_default(
    levels: int, *, substeps: int = 8, loss: Options | None = None, **stage: Any
) -> StageSettings:
    """Our SFDDM student of the stage "teacher".

    Trailing grid, mapped time, the teacher's weights, hidden-variable distance.

    Args:
      levels: T', the student's steps.
      substeps: teacher steps folded into one student step.
      loss: further hyperparameters of `ddistill.objectives.sfddm.SFDDM`.
      **stage: fields of `StageSettings`; `steps`, `batch_size` and `optimizer` are required.
    """
    return StageSettings(
        objective=objective("sfddm", substeps=substeps, **(loss or {})),
        teacher="teacher",
        grid=GridSettings(steps=levels, spacing="trailing", time="mapped"),
        method="sfddm",
        **{"init": "teacher", "ema": (0.995,), **stage},
    )


def sfddm_released(levels: int, *, prediction: str, steps: int, batch_size: int) -> StageSettings:
    """The authors' released code: L1 on the raw output plus L1 on the last features, fresh weights.

    The grid is "leading", the student's time input is its own step index, Adam has a constant rate
    of 2e-4, and there is neither EMA nor clipping (arXiv 2405.14961). `prediction` is what the
    teacher predicts.
    """
    released = objective(
        "sfddm",
        output_weight=1.0,
        output=prediction,
        output_norm="l1",
        feature_weight=1.0,
        tap="last",
        hidden_weight=0.0,
    )
    return StageSettings(
        objective=released,
        teacher="teacher",
        init="fresh",
        grid=GridSettings(steps=levels, spacing="leading", time="index"),
        steps=steps,
        batch_size=batch_size,
        optimizer=OptimizerSettings(name="adam", learning_rate=2e-4),
        ema=(),
        method="sfddm_released",
    )


SFDDM_PAPER_NETWORK = {
    "channels": 64,
    "multipliers": (1, 2, 4, 8),
    "blocks": 2,
    "head_dim": 32,
    "norm_groups": 8,
    "time_conditioning": "scale_shift",
}


@dataclass(frozen=True)
class SFDDMPaper:
    """The differences between the four experiments of arXiv 2405.14961.

    Attributes:
      data: data settings.
      side: image side in pixels; attention is at an eighth of it.
      prediction: of teacher and student.
      levels: T'.
      teacher, student: the lengths of their training.
    """

    data: Options
    side: int
    prediction: str
    levels: int
    teacher: Budget
    student: Budget


def sfddm_lsun(category: str, images: int) -> Settings:
    """SFDDM on LSUN images at 128 x 128: 100 steps, 50 epochs at batch 40.

    Args:
      category: "church" or "bedroom".
      images: number of training images.
    """
    length = Budget(-(-50 * images // 40), 40)
    data = {"name": "folder", "path": f"data/lsun_{category}", "image_size": 128, "flip": False}
    paper = SFDDMPaper(data, 128, "v", 100, teacher=length, student=length)
    return sfddm_paper(f"sfddm_{category}", paper)


def sfddm_paper(name: str, paper: SFDDMPaper, *, scored: bool = False) -> Settings:
    """An experiment of arXiv 2405.14961 with the settings of the released code.

    T = 1024 on the sigmoid schedule, Adam at 2e-4 throughout, T' levels on the leading grid. The
    released U-Net has 35.7 M parameters, with two blocks per level on the way up and linear
    attention at its outer levels. Ours has 63.3 M, with three blocks on the way up (as DDPM), and
    attention at the innermost level and in the middle only.

    Args:
      name: of the experiment.
      paper: which experiment.
      scored: whether a classifier of 32x32 images scores the samples.
    """
    adam = OptimizerSettings(name="adam", learning_rate=2e-4)
    stages = {
        "teacher": teacher_stage(
            network("unet", attention=(paper.side // 8,), **SFDDM_PAPER_NETWORK),
            steps=paper.teacher.updates,
            batch_size=paper.teacher.batch_size,
            optimizer=adam,
            prediction=paper.prediction,
            error=paper.prediction,
            ema=(0.995,),
        ),
        f"sfddm_n{paper.levels}": sfddm_released(
            paper.levels,
            prediction=paper.prediction,
            steps=paper.student.updates,
            batch_size=paper.student.batch_size,
        ),
    }
    if scored:
        stages = {"classifier": scorer_stage(), **stages}
    evaluation = EvaluationSettings(
        samples=10_000 if scored else 256,
        batch_size=100,
        teacher_samplers={"ddim": tuple(sorted({paper.levels, 16}))},
        full_sampler="ddim",
        full_steps=1024,
    )
    schedule = ScheduleSettings(name="sigmoid_beta", steps=1024)
    return experiment(name, paper.data, schedule, stages, evaluation)
