"""Two processes on one stage, stops that arrive at any moment, and what a stage hands on."""

import dataclasses
import fcntl
import threading
import time
from pathlib import Path

import pytest
from runs import (
    LateStop,
    Notes,
    differences,
    manifest,
    one_stage,
    plans_of,
    saved_state,
    saved_steps,
)

from ddistill import data
from ddistill.errors import TrainingError
from ddistill.planning.manifests import TrainedManifest
from ddistill.runtime.files import write_json
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.loop import StageRun
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.trained import Networks, load_state, load_weights


def in_background(workdir: Path, stop: StopRequest):
    """Starts `run_stages` beside the test; returns the thread, what it said and how it ended."""
    wanted, notes, ended = one_stage(), Notes(), []
    plans = list(plans_of(wanted, workdir).values())

    def work():
        try:
            ended.append(
                run_stages(plans, RunContext(wanted, data.load(wanted.data, "train"), notes, stop))
            )
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, notes, ended


def wait_for(notes: Notes, text: str) -> None:
    until = time.monotonic() + 60
    while not any(text in line for line in notes.said):
        assert time.monotonic() < until, notes.said
        time.sleep(0.02)


def test_a_second_process_waits_and_does_not_train(tmp_path):
    """The lock is held as by another process; when it is released the stage is complete."""
    plan = plans_of(one_stage(), tmp_path / "run")["teacher"]
    plan.folder.mkdir(parents=True)
    with (plan.folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread, notes, ended = in_background(tmp_path / "run", StopRequest())
        wait_for(notes, "teacher: another run is training this stage; waiting for it")
        time.sleep(0.6)
        assert thread.is_alive()
        assert not (plan.folder / "checkpoints").exists()
        write_json(plan.manifest_path, manifest(plan))
    thread.join(60)
    assert ended == [{"teacher": TrainedManifest.from_json(manifest(plan))}]
    assert notes.said[1:] == ["teacher: complete (40 steps), found on disk"]
    assert not (plan.folder / "checkpoints").exists()


def test_waiting_can_be_stopped(tmp_path):
    plan = plans_of(one_stage(), tmp_path / "run")["teacher"]
    plan.folder.mkdir(parents=True)
    stop = StopRequest()
    with (plan.folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread, notes, ended = in_background(tmp_path / "run", stop)
        wait_for(notes, "waiting for it")
        stop.name = "SIGTERM"
        thread.join(60)
    assert not thread.is_alive()
    assert isinstance(ended[0], Interrupted)
    assert "the wait for stage 'teacher'" in str(ended[0])


@pytest.mark.parametrize("looks", [2, 3, 4])
def test_whenever_a_signal_arrives_the_state_of_that_step_is_saved(tmp_path, looks):
    wanted = one_stage()
    plan = plans_of(wanted, tmp_path / "run")["teacher"]
    train = data.load(wanted.data, "train")
    run = StageRun(plan, RunContext(wanted, train, Notes(), LateStop(looks)))
    with pytest.raises(Interrupted) as stopped:
        run.run()
    step = int(str(stopped.value).rsplit(" ", 1)[1])
    assert saved_steps(plan) == [step]
    assert int(saved_state(plan, step).step) == step


def test_a_stop_is_no_error_of_training(tmp_path):
    assert not issubclass(Interrupted, TrainingError)
    with pytest.raises(Interrupted, match="the evaluation"):
        LateStop(1).check("the evaluation")
    StopRequest().check("anywhere")


@pytest.mark.parametrize("stops", [False, True])
def test_the_best_checkpoint_is_handed_on(tmp_path, monkeypatch, stops):
    """And kept, also where a stop comes between."""
    save, losses = Checkpoints.save, {10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0}

    def made_up(self, step, state, record, loss):
        save(self, step, state, record, losses.get(step, 5.0))

    monkeypatch.setattr(Checkpoints, "save", made_up)
    settings = one_stage(checkpoint_every=10, keep=1)
    stage = dataclasses.replace(settings.stages["teacher"], select_checkpoint="best")
    settings = dataclasses.replace(settings, stages={"teacher": stage})
    plan, notes = plans_of(settings, tmp_path / "run")["teacher"], Notes()
    images, networks = data.load(settings.data, "train"), Networks()
    if stops:
        with pytest.raises(Interrupted):
            run_stages([plan], RunContext(settings, images, notes, LateStop(36)))
    run_stages([plan], RunContext(settings, images, notes, StopRequest(), networks=networks))
    assert "teacher: the best checkpoint, of step 20, is the result of the stage" in notes.said
    assert (plan.manifest().steps, plan.manifest().handed_on) == (40, 20)
    assert saved_steps(plan) == [20, 40]
    wanted = saved_state(plan, 20)
    assert differences(load_state(plan).params, wanted.params) == []
    average = wanted.ema[plan.ema_key()]
    for found in (networks.weights(plan), load_weights(plan)):
        assert differences(found.params, average) == []
