"""Stages whose programs are equal compile once; whatever differs compiles anew."""

import dataclasses

import pytest
from runs import plans_of, saved_state, tiny_chain

from ddistill import data
from ddistill.recipes import progressive
from ddistill.settings import OptimizerSettings, TrainingSettings
from ddistill.training import programs
from ddistill.training.interrupt import StopRequest
from ddistill.training.pipeline import run_stages
from ddistill.training.progress import Reporter


def chain():
    """Three halvings whose lengths and rates differ, and one of another loss."""
    settings = tiny_chain()
    rates = iter([1e-2, 3e-3])

    def optimizer():
        return OptimizerSettings(learning_rate=next(rates), schedule="linear", warmup=1)

    halvings = {
        **progressive(8, 2, steps=3, steps_last=5, batch_size=8, optimizer=optimizer()),
        **progressive(2, 1, teacher="pd_n2", steps=4, batch_size=8, optimizer=optimizer()),
    }
    first = next(iter(halvings.values()))
    other = dataclasses.replace(
        first, objective={**first.objective, "loss": "x0"}, grid=halvings["pd_n2"].grid
    )
    stages = {
        "teacher": dataclasses.replace(settings.stages["teacher"], steps=2),
        **halvings,
        "other": other,
    }
    training = TrainingSettings(log_every=10, checkpoint_every=10, tensorboard=False)
    return dataclasses.replace(settings, stages=stages, pipeline=tuple(stages), training=training)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(plans, manifests, times that each objective was traced)."""
    settings = chain()
    traced = []
    make_step = programs.make_step

    def counting(s):
        step = make_step(s)

        def wrapped(*args):
            traced.append(s.objective)
            return step(*args)

        return wrapped

    plans = plans_of(settings, tmp_path_factory.mktemp("programs") / "run")
    patch = pytest.MonkeyPatch()
    patch.setattr(programs, "make_step", counting)
    with patch.context():
        manifests = run_stages(
            list(plans.values()),
            settings,
            data.load(settings.data, "train"),
            Reporter(),
            StopRequest(),
        )
    patch.undo()
    return plans, manifests, traced


def test_halvings_of_other_lengths_and_rates_are_traced_once(run):
    plans, _, traced = run
    assert traced.count(plans["pd_n4"].objective) == 1
    assert plans["pd_n4"].objective == plans["pd_n1"].objective


def test_another_loss_is_another_program(run):
    plans, manifests, traced = run
    assert traced.count(plans["other"].objective) == 1
    assert manifests["other"]["compile_seconds"] > 0


def test_only_the_first_of_equal_stages_compiles(run):
    _, manifests, _ = run
    assert manifests["pd_n4"]["compile_seconds"] > 0
    assert manifests["pd_n2"]["compile_seconds"] == 0
    assert manifests["pd_n1"]["compile_seconds"] == 0


def test_every_stage_has_its_own_length(run):
    plans, manifests, _ = run
    assert [manifests[n]["steps"] for n in ("pd_n4", "pd_n2", "pd_n1")] == [3, 5, 4]
    for name in ("pd_n4", "pd_n2", "pd_n1"):
        assert (
            int(saved_state(plans[name], manifests[name]["steps"]).step) == manifests[name]["steps"]
        )
