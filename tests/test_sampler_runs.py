"""Sampler runs: what labels and protocols call them, and which of them have an inverse."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from finished import tiny
from runs import plans_of

from ddistill.errors import ConfigError
from ddistill.evaluation.sampling_plan import planned_runs, short_runs
from ddistill.generation import Source


def runs_of(tmp_path, **student):
    """The sampler runs of a student, and those of its previews."""
    made = tiny()
    changed = dataclasses.replace(made.stages["student"], init="fresh", prediction="v", **student)
    stages = {**made.stages, "student": changed}
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
