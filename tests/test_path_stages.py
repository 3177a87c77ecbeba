"""Whole stages of CD, CT, SFD, BOOT, PID and Catch-Up: resumed, by classes, their samplers."""

import dataclasses

import jax
import numpy as np
import pytest
from runs import STEPS, LateStop, Notes, differences, plans_of, saved_state, tiny_settings

from ddistill import data
from ddistill.errors import ConfigError
from ddistill.evaluation.sampling_plan import planned_runs
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.settings import EvaluationSettings, GridSettings, ScheduleSettings, StudentsSettings
from ddistill.students import take
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages

METHODS = {
    "cd": {"target_ema": 0.5},
    "ct": {"curriculum": "doubling", "first_intervals": 2},
    "sfd": {"substeps": 2, "analytic_first": True},
    "boot": {},
    "pid": {},
    "catch_up": {"runge_kutta": 2, "largest_step": 0.25},
}


def settings_of(name, **changes):
    """A teacher, and a student of four levels by a method."""
    full = tiny_settings()
    student = dataclasses.replace(
        full.stages["student"],
        objective={"name": name, **METHODS[name]},
        grid=GridSettings(steps=4),
        method=name,
        **changes,
    )
    teacher = dataclasses.replace(full.stages["teacher"], steps=5)
    if name == "catch_up":  # from a teacher of flow matching
        flow = {"error": "flow", "levels": "logit_normal", "time_shift": 2.0}
        student, teacher = (dataclasses.replace(s, prediction="flow") for s in (student, teacher))
        teacher = dataclasses.replace(teacher, objective={**teacher.objective, **flow})
        full = dataclasses.replace(full, schedule=ScheduleSettings("linear_path", 16))
    return dataclasses.replace(full, stages={"teacher": teacher, "student": student})


def train(wanted, workdir, looks=None):
    """The trained stages; the student is stopped at the look `looks` first, if there is one."""
    dataset, notes = data.load(wanted.data, "train"), Notes()
    plans = list(plans_of(wanted, workdir).values())
    context = RunContext(wanted, dataset, notes, StopRequest())
    run_stages(plans, context, "teacher")
    if looks is not None:
        with pytest.raises(Interrupted):
            run_stages(plans, dataclasses.replace(context, stop=LateStop(looks)), "student")
    run_stages(plans, context, "student")
    assert (looks is not None) == any("going on from the checkpoint" in x for x in notes.said)
    return plans


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_stage_ends_as_one_that_was_not(name, tmp_path):
    wanted = settings_of(name)
    straight = train(wanted, tmp_path / "straight")
    resumed = train(wanted, tmp_path / "resumed", looks=25)
    ends = [saved_state(plans[-1], STEPS) for plans in (straight, resumed)]
    assert not differences(*ends)
    evaluation = EvaluationSettings(classifier="", samples=8, batch_size=8, full_steps=4)
    runs = planned_runs(dataclasses.replace(wanted, evaluation=evaluation), resumed)
    expected = {"sfd": 3, "boot": 1, "pid": 1}.get(name, 4)
    assert [run.nfe for run in runs if run.role == "student"] == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cd", "catch_up"])
def test_one_student_of_all_classes_is_a_plain_student(name, tmp_path):
    plain = saved_state(train(settings_of(name), tmp_path / "plain")[-1], STEPS)
    one = StudentsSettings(count=1, partition="classes")
    alone = saved_state(train(settings_of(name, students=one), tmp_path / "one")[-1], STEPS)
    for network in plain.params:
        for a, b in zip(
            jax.tree.leaves(plain.params[network]),
            jax.tree.leaves(take(alone.params[network], 0)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", METHODS)
def test_ranges_of_levels_are_refused(name, tmp_path):
    ranges = StudentsSettings(count=2, partition="timesteps")
    with pytest.raises(ConfigError, match="shares out noise levels"):
        plans_of(settings_of(name, students=ranges), tmp_path / "run")


def test_students_that_see_noise_alone_and_their_sampler_belong_together(tmp_path):
    other = settings_of("boot", samplers={"ddim": (1,)})
    evaluation = EvaluationSettings(classifier="", samples=8, batch_size=8, full_steps=4)
    for wanted, words in (
        (other, r"names 'ddim', but the students of 'student' are trained for 'from_noise'"),
        (settings_of("cd", samplers={"from_noise": (1,)}), "are not trained for 'from_noise'"),
        (settings_of("pid", samplers={"from_noise": (2,)}), "takes 1 step. Allowed: 1"),
        (settings_of("cd", samplers={"renoise": (1,)}, mid_levels=(0.8,)), "of 2 steps"),
        (
            settings_of("cd", samplers={"renoise": (2,)}, mid_levels=(1e6,)),
            "must decrease and differ",
        ),
        (settings_of("cd", samplers={"renoise": (2,)}, mid_levels=(-1.0,)), "must be above 0"),
    ):
        plans = list(plans_of(wanted, tmp_path / "run").values())
        with pytest.raises(ConfigError, match=words):
            planned_runs(dataclasses.replace(wanted, evaluation=evaluation), plans)
    teacher = dataclasses.replace(evaluation, teacher_samplers={"from_noise": (1,)})
    wanted = settings_of("cd")
    plans = list(plans_of(wanted, tmp_path / "run").values())
    with pytest.raises(ConfigError, match="'from_noise' is for students"):
        planned_runs(dataclasses.replace(wanted, evaluation=teacher), plans)


def test_chosen_levels_between_the_steps(tmp_path):
    wanted = settings_of("cd", samplers={"renoise": (1, 2)}, mid_levels=(0.6,))
    evaluation = EvaluationSettings(classifier="", samples=8, batch_size=8, full_steps=4)
    plans = list(plans_of(wanted, tmp_path / "run").values())
    runs = planned_runs(dataclasses.replace(wanted, evaluation=evaluation), plans)
    student = plans[-1].students[0].levels
    noise = np.asarray(student.sigma) / np.asarray(student.alpha)
    nearest = int(np.abs(np.log(noise[1:]) - np.log(0.6)).argmin()) + 1
    grids = [run.levels.sigma for run in runs if run.role == "student"]
    np.testing.assert_array_equal(grids[0], student.sigma[[0, 4]])
    np.testing.assert_array_equal(grids[1], student.sigma[[0, nearest, 4]])
