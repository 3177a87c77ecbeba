"""Sampler runs: what labels and protocols call them, and which of them have an inverse."""

import dataclasses
import shlex
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from finished import tiny
from runs import plans_of

from ddistill.errors import ConfigError
from ddistill.evaluation.records.names import METHODS, Method
from ddistill.evaluation.report.details import commands_of
from ddistill.evaluation.sampling_plan import planned_runs, short_runs
from ddistill.generation import Source
from ddistill.samplers import SAMPLERS
from ddistill.settings import EvaluationSettings, StudentsSettings


def runs_of(tmp_path, *, classes=False, **student):
    """The sampler runs of a student, and those of its previews; of classes, both networks."""
    made = tiny()
    own = {"network": {"name": "tiny", "num_classes": 10}, "conditional": True} if classes else {}
    changes = {"init": "fresh", "prediction": "v", **own, **student}
    changed = dataclasses.replace(made.stages["student"], **changes)
    teacher = dataclasses.replace(made.stages["teacher"], **own)
    if classes:
        dropout = {"label_dropout": 0.1, "null_class": 10}
        teacher = dataclasses.replace(teacher, objective={**teacher.objective, **dropout})
    stages = {**made.stages, "teacher": teacher, "student": changed}
    settings = dataclasses.replace(made, stages=stages)
    plans = plans_of(settings, tmp_path)
    students = [r for r in planned_runs(settings, list(plans.values())) if r.role == "student"]
    return students, short_runs(settings, plans["student"], 16)


def test_one_call_on_noise_is_one_step(tmp_path):
    (run,), (short,) = runs_of(tmp_path, objective={"name": "boot"}, method="boot")
    assert run.nfe == 1
    assert run.label.endswith("one call on noise), 1 step")
    assert short.label == run.label


def test_protocols_tell_chosen_levels_apart(tmp_path):
    cd = {"objective": {"name": "cd"}, "method": "cd", "samplers": {"renoise": (1, 2)}}
    even, _ = runs_of(tmp_path, **cd)
    chosen, _ = runs_of(tmp_path, **cd, mid_levels=(0.8,))
    assert [run.sampler_name for run in even] == ["renoise", "renoise"]
    assert [run.sampler_name for run in chosen] == ["renoise", "renoise-mid-0.8"]


GUIDABLE = {
    "objective": {"name": "o2mkd", "label_dropout": 0.1, "null_class": 10},
    "classes": True,
    "method": "o2mkd",
    "samplers": {"ddim": (2,)},
    "students": StudentsSettings(count=2, partition="timesteps"),
}


def test_students_are_guided_in_their_samples_where_the_stage_says_so(tmp_path):
    plain, _ = runs_of(tmp_path, **GUIDABLE)
    guided, (short,) = runs_of(tmp_path, **GUIDABLE, sample_guidance=3.0)
    assert [(r.nfe, r.guidance, r.scale_of_guidance) for r in plain] == [(2, 1.0, None)]
    assert [(r.nfe, r.guidance, r.scale_of_guidance) for r in guided] == [(4, 3.0, 3.0)]
    assert short.guidance == 3.0
    assert "guidance 3" in guided[0].label
    assert "guidance" not in plain[0].label
    assert plain[0].plan.digest == guided[0].plan.digest, "training is the same"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_guidance": -1.0}, "sample_guidance=-1.0 must be 0 or above"),
        ({"sample_guidance": float("inf")}, "sample_guidance=inf must be 0 or above"),
        (
            {"sample_guidance": 2.0, "classes": False, "objective": {"name": "o2mkd"}},
            "'student' is unconditional",
        ),
        (
            {"sample_guidance": 2.0, "objective": {"name": "o2mkd"}},
            "is not known to have been trained on the null class. Set sample_guidance=1",
        ),
        (
            {
                "sample_guidance": 2.0,
                "students": StudentsSettings(count=2, partition="classes"),
            },
            "is students of some classes each",
        ),
        ({"sample_guidance": 2.0, "guidance": 3.0}, "would be guided twice"),
        ({"sample_guidance": 2.0, "method": ""}, "sample_guidance=2.0 has no effect"),
    ],
)
def test_students_that_cannot_be_guided_in_their_samples(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        runs_of(tmp_path, **{**GUIDABLE, **changes})


def test_a_null_condition_that_the_teacher_lacks_is_not_learnt(tmp_path):
    made = tiny()
    own = {"network": {"name": "tiny", "num_classes": 10}, "conditional": True}
    teacher = dataclasses.replace(made.stages["teacher"], **own)
    objective = GUIDABLE["objective"]
    own |= {"init": "fresh", "prediction": "v"}
    student = dataclasses.replace(made.stages["student"], objective=objective, **own)
    stages = {**made.stages, "teacher": teacher, "student": student}
    words = (
        "asks the teacher 'teacher' without conditions for 10% of the examples, but it was trained"
    )
    with pytest.raises(ConfigError, match=words):
        plans_of(dataclasses.replace(made, stages=stages), tmp_path)


def test_every_sampler_of_teachers_can_be_recorded():
    """A name without a label would only be missed when the scores are written."""
    for name, sampler in SAMPLERS.items():
        if sampler.rows is None:
            assert METHODS[name] == Method(f"teacher {sampler.label}", "teacher")


def test_commands_of_the_page_can_be_given_as_they_stand(tmp_path):
    (run,), _ = runs_of(tmp_path)
    odd = dataclasses.replace(run.plan, name="a student's")
    run = dataclasses.replace(run, plan=odd)
    scored = [SimpleNamespace(run=run)]
    evaluation = SimpleNamespace(
        workdir=tmp_path,
        plans=[],
        settings=SimpleNamespace(evaluation=EvaluationSettings()),
        dataset=SimpleNamespace(image_shape=(8, 8, 1), texts={}),
    )
    export = dict(commands_of(evaluation, scored))["Export"].splitlines()
    for line in export:
        assert "--stage=a student's" in shlex.split(line)
    # The tests' network is none of diffusers.
    assert [line.split()[3] for line in export] == ["--to=stablehlo", "--to=safetensors"]


@pytest.mark.parametrize(
    ("sampler", "steps", "path", "inverse"),
    [
        ("ddim", 4, True, True),
        ("heun", 4, True, True),
        ("renoise", 1, True, True),
        ("renoise", 2, False, False),
        ("ddpm", 4, False, False),
        ("from_noise", 2, True, False),
        ("ddim_afs", 4, True, False),
    ],
)
def test_which_samplers_have_paths_and_an_inverse(sampler, steps, path, inverse):
    plan = SimpleNamespace(name="student")
    source = Source(SimpleNamespace(sampler=sampler, steps=steps, plan=plan), None, None)

    checks = [(lambda: source.check_deterministic("interpolate"), path)]
    checks += [(source.check_invertible, inverse)] * path
    for check, allowed in checks:
        named = f"stage 'student' is sampled with {sampler}"
        with nullcontext() if allowed else pytest.raises(ConfigError, match=named):
            check()
