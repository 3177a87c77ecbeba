"""SFDDM on scikit-learn's 8x8 digits: the main job, small enough for any laptop.

Command:  ./launch/local.sh --config=configs/sfddm_digits.py
"""

import dataclasses

from ddistill import recipes
from ddistill.settings import (
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    StageSettings,
    TrainingSettings,
)


def get_config(variant: str = ""):
    recipes.check_variant(variant)
    teacher = recipes.teacher_stage(
        recipes.network(
            "unet",
            channels=24,
            multipliers=(1, 2, 2),
            blocks=2,
            attention=(4,),
            head_dim=24,
            norm_groups=8,
            out_channels=1,
        ),
        steps=2500,
        batch_size=64,
        optimizer=OptimizerSettings(
            learning_rate=2e-3, schedule="cosine", warmup=100, final_scale=0.02, clip=1.0
        ),
        ema=(0.995,),
    )
    classifier = StageSettings(
        objective=recipes.objective("classification", shift=1, label_smoothing=0.05),
        network=recipes.network("digits_classifier"),
        steps=600,
        batch_size=64,
        optimizer=OptimizerSettings(learning_rate=2e-3, schedule="cosine", warmup=50),
        ema=(0.99,),
        shared=True,
    )
    student_optimizer = OptimizerSettings(
        learning_rate=1e-3, schedule="cosine", warmup=50, final_scale=0.02, clip=1.0
    )
    students = {
        f"sfddm_n{levels}": recipes.sfddm_default(
            levels, steps=1000, batch_size=64, optimizer=student_optimizer, substeps=8
        )
        for levels in (4, 2, 1)
    }
    settings = Settings(
        name="sfddm_digits",
        data={"name": "digits"},
        schedule=ScheduleSettings(name="cosine", steps=256),
        stages={"classifier": classifier, "teacher": teacher, **students},
        pipeline=("classifier", "teacher", *students),
        training=TrainingSettings(log_every=50, checkpoint_every=500),
        evaluation=recipes.digits_evaluation(full_steps=256),
    )
    if variant == "smoke":
        settings = recipes.smoke(
            settings, {"channels": 8, "head_dim": 8}, keep=("classifier", "teacher", "sfddm_n2")
        )
    return recipes.to_config(dataclasses.replace(settings))
