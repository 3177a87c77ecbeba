"""Whole stages of the methods of a path: resumed, of several students, and their samplers."""

import dataclasses

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from killed import kill_while_training
from runs import (
    STEPS,
    Notes,
    plans_of,
    saved_state,
    tiny_chain,
    tiny_settings,
)

from ddistill import data, networks
from ddistill.errors import ConfigError
from ddistill.evaluation.any_steps import run_of_steps
from ddistill.evaluation.sampling_plan import planned_runs
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import EvaluationSettings, GridSettings, ScheduleSettings, StudentsSettings
from ddistill.students import take
from ddistill.training.initial import abstract_state
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages

METHODS = {
    "cd": {"target_ema": 0.5},
    "ct": {"curriculum": "doubling", "first_intervals": 2},
    "sfd": {"substeps": 2, "analytic_first": True},
    "sfd_v": {"substeps": 2, "step_counts": (1, 2, 3)},
    "boot": {},
    "pid": {},
    "catch_up": {"runge_kutta": 2, "largest_step": 0.25},
    "meanflow": {"instant_share": 0.25, "tangent_warmup": 10},
    "shortcut": {"velocity_from": "teacher", "doubled_every": 2, "target_ema": 0.5},
    "scm": {"tangent_warmup": 10},
    "rcm": {"tangent_warmup": 10, "student_every": 2, "learned_weight": True},
    "rdd": {"queue_rows": 64, "rows_per_step": 24, "contrast_rows": 16},
    # With DDIL's states.
    "progressive": {
        "teacher_states": 0.2,
        "student_states": 0.5,
        "state_warmup": 0.25,
        "replay_batches": 2,
        "clip_x0": True,
    },
}
# Several students of the methods with a memory.
STUDENTS = {
    "rdd": StudentsSettings(count=2, partition="timesteps"),
    "progressive": StudentsSettings(count=2, partition="classes"),
}


def settings_of(name, **changes):
    """A teacher, and a student of four levels by a method."""
    full = tiny_settings()
    told = {"samplers": {"ddim": (1, 3)}, "network": {}}
    levels = {"sfd_v": {"grid": GridSettings(), **told}, "meanflow": told, "shortcut": told}
    usual = {"grid": GridSettings(steps=4), **levels.get(name, {})}
    student = dataclasses.replace(
        full.stages["student"],
        objective={"name": name.removesuffix("_v"), **METHODS[name]},
        method={"progressive": "ddil"}.get(name, name),
        **{**usual, **changes},
    )
    teacher = dataclasses.replace(full.stages["teacher"], steps=5, shared=True)
    if name == "catch_up":  # from a teacher of flow matching
        flow = {"error": "flow", "levels": "logit_normal", "time_shift": 2.0}
        student, teacher = (dataclasses.replace(s, prediction="flow") for s in (student, teacher))
        teacher = dataclasses.replace(teacher, objective={**teacher.objective, **flow})
        full = dataclasses.replace(full, schedule=ScheduleSettings("linear_path", 16))
    stages = {"teacher": teacher, "student": student}
    if name == "rdd":
        classifier = dataclasses.replace(tiny_chain().stages["classifier"], steps=5, shared=True)
        student = dataclasses.replace(student, classifier="classifier")
        stages = {"classifier": classifier, "teacher": teacher, "student": student}
    return dataclasses.replace(full, stages=stages, pipeline=tuple(stages))


def train(wanted, workdir):
    """The stages of a run, trained, and what was said."""
    dataset, notes = data.load(wanted.data, "train"), Notes()
    plans = list(plans_of(wanted, workdir).values())
    run_stages(plans, RunContext(wanted, dataset, notes, StopRequest()))
    return plans, notes.said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of runs, which share their teachers."""
    return tmp_path_factory.mktemp("paths")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_stage_of_one_student_ends_as_a_plain_one_that_was_not(name, folder):
    """The student of all classes is bit for bit the plain one."""
    wanted = settings_of(name)
    straight, _ = train(wanted, folder / f"{name}_straight")
    one = StudentsSettings(count=1, partition="classes")
    again = settings_of(name, students=one), folder / f"{name}_killed"
    kill_while_training("student", 25, train, *again)
    killed, said = train(*again)
    assert any("going on from the checkpoint at step 17" in line for line in said)
    a, b = (saved_state(plans[-1], STEPS) for plans in (straight, killed))
    for kind in ("params", "opt_state", "ema", "targets", "memory"):
        chex.assert_trees_all_equal(getattr(a, kind), take(getattr(b, kind), 0))
    evaluation = EvaluationSettings(classifier="", samples=8, batch_size=8, full_steps=4)
    runs = planned_runs(dataclasses.replace(wanted, evaluation=evaluation), straight)
    two = {key: [1, 3] for key in ("sfd_v", "meanflow", "shortcut")}
    expected = {"sfd": [3], "boot": [1], "pid": [1], **two}.get(name, [4])
    assert [run.nfe for run in runs if run.role == "student"] == expected
    told = [run.inputs.get("step_count", 0) for run in runs if run.role == "student"]
    assert told == ([1, 3] if name == "sfd_v" else [0] * len(expected))


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_has_a_memory_of_its_own(name, tmp_path):
    plain, several = (
        plans_of(settings_of(name, **changes), tmp_path / str(len(changes)))["student"]
        for changes in ({}, {"students": STUDENTS[name]})
    )
    shapes = {key: own.shape for key, own in abstract_state(plain).memory.items()}
    assert {"rdd": "queue", "progressive": "replay_z"}[name] in shapes
    stacked = {key: own.shape for key, own in abstract_state(several).memory.items()}
    assert stacked == {key: (2, *shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("changes", [{"queue_rows": 961}, {"rows_per_step": 513}])
def test_a_queue_larger_than_a_stage_fills_is_refused(changes, tmp_path):
    wanted = settings_of("rdd")
    student = wanted.stages["student"]
    student = dataclasses.replace(
        student, objective={"name": "rdd", **METHODS["rdd"], "queue_rows": 960, **changes}
    )
    full = dataclasses.replace(wanted, stages={**wanted.stages, "student": student})
    with pytest.raises(ConfigError, match=rf"student.objective.{next(iter(changes))}=.*1 to"):
        plans_of(full, tmp_path / "run")


def test_a_classifier_without_maps_is_refused(tmp_path, monkeypatch):
    class Blind(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x, train=False):
            h = jnp.mean(x, axis=(1, 2))
            return nn.Dense(self.num_classes)(h), h

    monkeypatch.setitem(networks.NETWORKS, "blind", Blind)
    wanted = settings_of("rdd")
    classifier = dataclasses.replace(wanted.stages["classifier"], network={"name": "blind"})
    full = dataclasses.replace(wanted, stages={**wanted.stages, "classifier": classifier})
    with pytest.raises(ConfigError, match="its network 'blind' has no features to tap"):
        plans_of(full, tmp_path / "run")


@pytest.mark.parametrize("name", ["ct", "catch_up", "meanflow", "scm"])
def test_guidance_of_a_teacher_that_is_not_called_is_refused(name, tmp_path):
    wanted = settings_of(name, network={}, prediction="", guidance=2.0)
    teacher, student = wanted.stages["teacher"], wanted.stages["student"]
    teacher = dataclasses.replace(
        teacher,
        objective={**teacher.objective, "label_dropout": 0.1, "null_class": 10},
        network={"name": "tiny", "num_classes": 10},
        conditional=True,
    )

    def planned(**hyper):
        own = dataclasses.replace(student, objective={**student.objective, **hyper})
        stages = {"teacher": teacher, "student": own}
        return plans_of(dataclasses.replace(wanted, stages=stages), tmp_path / "run")["student"]

    from_data = {"velocity_from": "data"} if name in ("meanflow", "scm") else {}
    with pytest.raises(ConfigError, match=f"guidance=2.0 has no effect.*'{name}' does not learn"):
        planned(**from_data)
    if from_data:
        assert planned(velocity_from="teacher").settings.guidance == 2.0


@pytest.mark.parametrize("name", [name for name in METHODS if name != "rdd"])
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
        (
            settings_of("meanflow", samplers={"renoise": (2,)}),
            "are given end_time step by step, for steps of 'ddim'. Allowed: ddim",
        ),
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


@pytest.mark.parametrize("name", ["meanflow", "scm"])
def test_students_of_any_number_of_steps(name, tmp_path):
    """Of numbers that the evaluation does not have, up to that of the levels."""
    wanted = settings_of(name)
    evaluation = EvaluationSettings(classifier="", samples=8, batch_size=8, full_steps=4)
    wanted = dataclasses.replace(wanted, evaluation=evaluation)
    planned = planned_runs(wanted, list(plans_of(wanted, tmp_path / "run").values()))[-1]
    run = run_of_steps(wanted, planned, 2)
    assert (run.nfe, run.sampler, run.role) == (2, planned.sampler, "student")
    np.testing.assert_array_equal(run.levels.sigma, run.student_plan.levels.sigma[[0, 2, 4]])
    assert run.key == f"student_{run.sampler}_2"
    with pytest.raises(ConfigError, match="nfe=5 is not possible: stage 'student' has 4 levels"):
        run_of_steps(wanted, planned, 5)


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
