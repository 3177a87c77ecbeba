"""Two processes on one stage, and stops that arrive at any moment."""

import fcntl
import json
import threading
import time
from pathlib import Path

import pytest
from runs import LateStop, Notes, one_stage, plans_of, saved_state, saved_steps

from ddistill import data
from ddistill.errors import TrainingError
from ddistill.training.interrupt import Interrupted, StopRequest
from ddistill.training.loop import StageRun
from ddistill.training.pipeline import run_stages
from ddistill.training.programs import Programs


def in_background(workdir: Path, stop: StopRequest):
    """Starts `run_stages` beside the test; returns the thread, what it said and how it ended."""
    wanted, notes, ended = one_stage(), Notes(), []
    plans = list(plans_of(wanted, workdir).values())

    def work():
        try:
            ended.append(run_stages(plans, wanted, data.load(wanted.data, "train"), notes, stop))
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
        (plan.folder / "complete.json").write_text(json.dumps({"steps": 40}))
    thread.join(60)
    assert ended == [{"teacher": {"steps": 40}}]
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
    run = StageRun(plan, train, wanted.training, Notes(), LateStop(looks), Programs())
    with pytest.raises(Interrupted) as stopped:
        run.run(None, None)
    step = int(str(stopped.value).rsplit(" ", 1)[1])
    assert saved_steps(plan) == [step]
    assert int(saved_state(plan, step).step) == step


def test_a_stop_is_no_error_of_training(tmp_path):
    assert not issubclass(Interrupted, TrainingError)
    with pytest.raises(Interrupted, match="the evaluation"):
        LateStop(1).check("the evaluation")
    StopRequest().check("anywhere")
