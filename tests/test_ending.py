"""Settings that belong together: levels that end in noise, averages, clips and batches that fit."""

import dataclasses
import re

import numpy as np
import pytest
from runs import plans_of, tiny_settings

from ddistill import data
from ddistill.data.facts import DataFacts
from ddistill.errors import ConfigError
from ddistill.planning.checks.levels import notes
from ddistill.schedules import NOISE, build_schedule, last_log_snr, make_schedule
from ddistill.settings import GridSettings, ScheduleSettings

PUBLISHED = [
    ("linear_beta", 1000, {}),  # DDPM
    ("linear_beta", 4000, {"start": 2.5e-5, "end": 5e-3}),
    ("scaled_linear_beta", 1000, {}),  # Stable Diffusion
    ("linear_beta", 1000, {"start": 0.00085, "end": 0.012}),
    ("scaled_linear_beta", 1000, {"start": 0.0015, "end": 0.0155}),
    ("logistic_beta", 5000, {"start": 1e-7, "end": 2e-3}),  # GeoDiff
    ("cosine", 4000, {}),
    ("cosine", 1024, {"clean": False}),  # CFD
    ("cosine_log_snr", 8192, {}),  # PD
    ("sigmoid_beta", 1024, {}),  # SFDDM
    ("karras", 1000, {}),  # EDM
    ("karras", 18, {"sigma_max": 50.0}),  # VE
]


@pytest.mark.parametrize("name, steps, options", PUBLISHED)
def test_published_schedules_end_in_noise(name, steps, options):
    assert last_log_snr(make_schedule(name, steps, **options)) <= NOISE


@pytest.mark.parametrize("name", ["cosine", "sigmoid_beta", "cosine_log_snr", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_schedules_without_a_length_of_their_own_end_in_noise_in_any_number_of_steps(name, steps):
    assert last_log_snr(make_schedule(name, steps)) <= NOISE


@pytest.mark.parametrize(
    "name, steps, options",
    [
        ("linear_beta", 100, {}),
        ("linear_beta", 250, {}),
        ("scaled_linear_beta", 200, {}),
        ("logistic_beta", 50, {}),
        ("logistic_beta", 1000, {"end": 1e-3}),
        ("linear_beta", 1000, {"end": 1e-3}),
        ("karras", 18, {"sigma_max": 1.0}),
        ("cosine_log_snr", 64, {"bound": 2.0}),
        ("cosine", 8, {"max_beta": 0.1}),
    ],
)
def test_levels_that_never_get_to_noise_are_refused_with_a_remedy_that_works(name, steps, options):
    with pytest.raises(ConfigError, match="samplers start from pure noise") as caught:
        make_schedule(name, steps, **options)
    text = str(caught.value)
    assert f"schedule.name='{name}' with steps={steps}" in text
    assert "\n" not in text
    advised = text[text.index("Set schedule.options.") :]
    named = {k: float(v) for k, v in re.findall(r"(\w+)=([\d.e+-]+\d)", advised)}
    assert last_log_snr(make_schedule(name, steps, **{**options, **named})) <= NOISE


@pytest.mark.parametrize(
    "name, steps, options",
    [("linear_beta", 4, {}), ("listed_beta", 3, {"betas": (0.1, 0.2, 0.3)})],
)
def test_where_no_option_helps_another_schedule_is_named(name, steps, options):
    with pytest.raises(ConfigError, match="schedule.name='cosine', which ends in noise with any"):
        make_schedule(name, steps, **options)


def test_what_a_network_was_trained_on_is_taken_as_it_is():
    assert last_log_snr(build_schedule("linear_beta", 100)) > NOISE
    assert build_schedule("linear_beta", 100).alpha[-1] == pytest.approx(0.602, abs=1e-3)


# ------------------------------------------------------------------------------------- planned

SCORED = {"evaluation.enabled": True, "evaluation.classifier": "", "evaluation.samples": 64}


@pytest.mark.parametrize(
    "changes, parts",
    [
        (
            {"schedule": {"name": "linear_beta", "steps": 100}},
            ["steps=100 ends at alpha=0.6", "start=0.001 and end=0.2 (both times 10"],
        ),
        (
            {"stages.student.grid.explicit": (0, 4, 8)},
            ["config.stages.student.grid.explicit ends at 8", "alpha=0.7", "End it at 16."],
        ),
        (
            {"stages.teacher.grid.explicit": (0, 4, 8)},
            ["config.stages.teacher.grid.explicit ends at 8"],
        ),
        (
            {
                "schedule": {"name": "cosine_log_snr", "steps": 16, "options": {"bound": 200.0}},
                "stages.teacher.prediction": "eps",
            },
            ["config.stages.teacher.prediction='eps'", "has alpha=3", "prediction='v' or 'x0'"],
        ),
        (
            {"stages.student.ema": (0.9999,), "stages.student.ema_warmup": False},
            ["config.stages.student.ema=(0.9999,) with ema_warmup=False", "of the average"],
        ),
        (
            {"stages.student.select_checkpoint": "best", "training.checkpoint_every": 100},
            ["config.stages.student.select_checkpoint='best'", "checkpoint_every=100 there is one"],
        ),
        ({**SCORED, "evaluation.clip": 0.5}, ["config.evaluation.clip=0.5 clips images"]),
    ],
)
def test_settings_that_would_be_wrong_in_silence_are_refused(refused, changes, parts):
    text = refused(changes)
    for part in parts:
        assert part in text


def test_lists_that_stop_at_noise_and_averages_that_learn_are_taken(tmp_path):
    wanted = tiny_settings()
    student = dataclasses.replace(
        wanted.stages["student"],
        grid=GridSettings(explicit=(0, 8, 15)),
        ema=(0.9,),
        ema_warmup=False,
    )
    plans = plans_of(with_student(wanted, student), tmp_path / "run")
    assert last_log_snr(plans["student"].levels) <= NOISE


def with_student(wanted, student):
    return dataclasses.replace(wanted, stages={**wanted.stages, "student": student})


def test_notes_tell_of_what_works_and_is_likely_not_meant(tmp_path):
    wanted = tiny_settings()
    dataset = data.load({"name": "digits"}, "train")
    assert notes(plans_of(wanted, tmp_path / "a").values(), wanted, DataFacts.of(dataset)) == []
    student = dataclasses.replace(
        wanted.stages["student"],
        objective={"name": "sfddm", "substeps": 1},
        grid=GridSettings(steps=2, spacing="leading"),
        batch_size=4096,
    )
    wanted = with_student(wanted, student)
    found = notes(plans_of(wanted, tmp_path / "b").values(), wanted, DataFacts.of(dataset))
    assert len(found) == 2
    assert "student: grid.spacing='leading' has its noisiest level at alpha=0.6" in found[0]
    assert f"batch_size=4096, but there are {len(dataset)} training images" in found[1]
    # Levels of a diffusers teacher are not refused, and not passed over either.
    theirs = dataclasses.replace(wanted, schedule=ScheduleSettings("linear_beta", 100))
    assert (
        "schedule: the teacher's levels end at alpha=0.6"
        in notes([], theirs, DataFacts.of(dataset))[0]
    )


def test_batches_are_compared_with_the_images_of_a_students_classes(tmp_path):
    wanted = tiny_settings()
    dataset = data.load({"name": "digits"}, "train")
    plan = plans_of(wanted, tmp_path / "run")["student"]
    student_plan = dataclasses.replace(plan.students[0], classes=(3,))
    settings = dataclasses.replace(plan.settings, batch_size=512)
    own = dataclasses.replace(plan, students=(student_plan,), settings=settings)
    threes = int(np.sum(dataset.labels == 3))
    assert (
        f"there are {threes} training images of its classes"
        in notes([own], wanted, DataFacts.of(dataset))[0]
    )


@pytest.mark.parametrize(
    "name, steps, options, message",
    [
        ("linear_beta", 40000, {}, "are the same in float32 .*Use fewer steps"),
        ("linear_beta", 1000, {"end": 0.5}, "are the same in float32"),
        ("listed_beta", 3, {"betas": [1e-30, 0.9, 0.99]}, "levels 0 and 1 are the same"),
        ("linear_beta", 1000, {"start": "0.001"}, "start='0.001' is a str; a number is needed"),
        ("linear_beta", 1000, {"start": None}, "start=None is a NoneType; a number is needed"),
        ("cosine", 1000, {"clean": "no"}, "clean='no' is a str; True or False is needed"),
        ("listed_beta", 3, {}, "schedule.options.betas is missing"),
        ("listed_beta", 3, {"betas": ["a"]}, "a list of numbers is needed"),
    ],
)
def test_levels_that_no_network_could_tell_apart_and_wrong_types(name, steps, options, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(name, steps, **options)
