"""Stages whose programs are equal compile once; whatever differs compiles anew."""

import dataclasses
import re

import pytest
from runs import Notes, plans_of, saved_state, tiny_chain

from ddistill import data
from ddistill.recipes import progressive
from ddistill.runtime.interrupt import StopRequest
from ddistill.runtime.metrics_log import read_metrics
from ddistill.settings import OptimizerSettings, TrainingSettings
from ddistill.training import compiled
from ddistill.training.metrics_buffer import MetricsBuffer
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages


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
    training = TrainingSettings(log_every=1, checkpoint_every=10, loggers=())
    return dataclasses.replace(settings, stages=stages, pipeline=tuple(stages), training=training)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(plans, manifests, times that each objective was traced, lines on the console)."""
    settings = chain()
    traced = []
    make_step = compiled.make_step

    def counting(s):
        step = make_step(s)

        def wrapped(*args):
            traced.append(s.objective)
            return step(*args)

        return wrapped

    plans = plans_of(settings, tmp_path_factory.mktemp("programs") / "run")
    patch, notes = pytest.MonkeyPatch(), Notes()
    patch.setattr(compiled, "make_step", counting)
    with patch.context():
        images = data.load(settings.data, "train")
        context = RunContext(settings, images, notes, StopRequest())
        manifests = run_stages(list(plans.values()), context)
    patch.undo()
    return plans, manifests, traced, notes.said


def test_halvings_of_other_lengths_and_rates_are_traced_once(run):
    plans, _, traced, _ = run
    assert traced.count(plans["pd_n4"].objective) == 1
    assert plans["pd_n4"].objective == plans["pd_n1"].objective


def test_another_loss_is_another_program(run):
    plans, manifests, traced, _ = run
    assert traced.count(plans["other"].objective) == 1
    assert manifests["other"].compile_seconds > 0


def test_only_the_first_of_equal_stages_compiles(run):
    _, manifests, *_ = run
    assert manifests["pd_n4"].compile_seconds > 0
    assert manifests["pd_n2"].compile_seconds == 0
    assert manifests["pd_n1"].compile_seconds == 0


def test_every_stage_has_its_own_length(run):
    plans, manifests, *_ = run
    assert [manifests[n].steps for n in ("pd_n4", "pd_n2", "pd_n1")] == [3, 5, 4]
    for name in ("pd_n4", "pd_n2", "pd_n1"):
        assert int(saved_state(plans[name], manifests[name].steps).step) == manifests[name].steps


def test_compiling_is_told_while_it_happens(run):
    *_, said = run
    told = [line for line in said if ": compil" in line]
    assert [line.split(":")[0] for line in told] == [
        *("teacher", "teacher", "pd_n4", "pd_n4", "other", "other")
    ]
    assert told[0] == "teacher: compiling the train step"
    assert re.fullmatch(r"teacher: compiled in \d+\.\d s", told[1])


def test_a_step_that_compiles_is_in_no_rate(run):
    """Its time is left out of the interval, and so are its images."""
    plans, *_ = run
    timed = {
        name: [
            "images_per_second" in row for row in read_metrics(plans[name].folder / "metrics.jsonl")
        ]
        for name in ("pd_n4", "pd_n2")
    }
    assert timed == {"pd_n4": [False, True, True], "pd_n2": [True] * 5}


def test_an_interval_counts_the_steps_that_it_times():
    buffer = MetricsBuffer()
    begun = buffer.since
    buffer.add(0, 8, {}, compiled=20.0)
    assert (buffer.timed, buffer.since) == (0, begun + 20.0)
    buffer.add(8, 8, {}, compiled=0.0)
    buffer.add(16, 4, {}, compiled=0.0)
    assert buffer.timed == 12
    assert len(buffer.rows) == 3
