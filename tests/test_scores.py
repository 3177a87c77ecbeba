"""The score by which the best checkpoint is chosen, however a run logs and is stopped."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from runs import LateStop, Notes, one_stage, plans_of, saved_steps

from ddistill import data
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.scores import Score


def scored(metrics: dict[str, np.ndarray], cuts: list[int], resume: bool = False) -> float:
    """The score of steps that are added in pieces."""
    score, places = Score("diagonal_fd"), [0, *cuts, len(next(iter(metrics.values())))]
    for begin, end in itertools.pairwise(places):
        score.add({name: values[begin:end] for name, values in metrics.items()})
        if resume:  # through a checkpoint's JSON
            record = json.loads(json.dumps(score.record()))
            score = Score("diagonal_fd")
            score.restore(record)
    return score.take()


@pytest.mark.parametrize("cuts", [[1], [4, 9], list(range(1, 12))])
@pytest.mark.parametrize("resume", [False, True])
def test_the_score_does_not_depend_on_how_often_it_is_looked_at(cuts, resume):
    rng = np.random.default_rng(0)
    metrics = {"loss": rng.random(12, np.float32), "diagonal_fd": rng.random(12, np.float32)}
    metrics["ran/diagonal_fd"] = np.float32(np.arange(12) % 5 == 0)
    assert scored(metrics, cuts, resume) == scored(metrics, [])
    used = metrics["diagonal_fd"][[0, 5, 10]].astype(np.float64)
    assert scored(metrics, []) == pytest.approx(used.mean(), rel=1e-15)
    del metrics["diagonal_fd"], metrics["ran/diagonal_fd"]
    assert scored(metrics, cuts, resume) == scored(metrics, [])
    assert scored(metrics, []) == pytest.approx(metrics["loss"].mean(), rel=1e-6)


def test_students_that_have_diverged_do_not_count():
    loss = np.float32([[1, 9], [2, 9], [3, 9]])
    diverged = np.float32([[0, 0], [0, 2], [0, 2]])
    assert scored({"loss": loss, "diverged": diverged}, [1]) == (1 + 9 + 2 + 3) / 4


def test_a_quality_metric_that_was_not_measured_stays_and_is_no_loss():
    score = Score("diagonal_fd")
    never = {"loss": np.ones(2, np.float32), "diagonal_fd": np.zeros(2, np.float32)}
    score.add({**never, "ran/diagonal_fd": np.zeros(2, np.float32)})
    assert math.isnan(score.take())
    score.add({**never, "diagonal_fd": np.float32([7, 0]), "ran/diagonal_fd": np.float32([1, 0])})
    assert score.take() == 7
    score.add({**never, "ran/diagonal_fd": np.zeros(2, np.float32)})
    assert score.take() == 7


def losses(plan) -> dict[int, float | None]:
    seals = (plan.folder / "checkpoints" / "digests").glob("*.json")
    return {int(seal.stem): json.loads(seal.read_text())["loss"] for seal in seals}


def test_what_is_handed_on_does_not_depend_on_logs_and_stops(tmp_path):
    """Bit for bit: another pace of the log, and a stop between two checkpoints."""
    stage = dataclasses.replace(one_stage().stages["teacher"], select_checkpoint="best")
    found = {}
    for name, every, stops in (("a", 10, ()), ("b", 3, ()), ("c", 10, (13,))):
        settings = one_stage(log_every=every, checkpoint_every=17, keep=10)
        settings = dataclasses.replace(settings, stages={"teacher": stage})
        plan = plans_of(settings, tmp_path / name / "run")["teacher"]
        images = data.load(settings.data, "train")
        for looks in stops:
            with pytest.raises(Interrupted):
                run_stages([plan], RunContext(settings, images, Notes(), LateStop(looks)))
            assert 17 not in saved_steps(plan)
        run_stages([plan], RunContext(settings, images, Notes(), StopRequest()))
        chosen = {step: loss for step, loss in losses(plan).items() if loss is not None}
        assert set(chosen) == {17, 34, 40}
        found[name] = plan.digest, plan.manifest().handed_on, chosen
    assert found["a"] == found["b"] == found["c"]


def test_an_empty_record_begins_anew():
    score = Score()
    score.restore({"sums": {}, "last": {}})
    score.add({"loss": np.float32([1, 3])})
    assert score.take() == 2
