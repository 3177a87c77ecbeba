"""`ddistill.train`: a run as a function, its callbacks, stops and errors."""

import dataclasses
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest
from finished import Told, plain, tiny
from runs import saved_steps

import ddistill
from ddistill import run_training
from ddistill.errors import ConfigError
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.training.timings import FILE


def test_a_run_is_trained_and_opened(finished):
    run = finished.run
    assert repr(run) == f"TrainedRun('{run.folder}': teacher, student; nfe 4)"
    assert run.sample(3).shape == (3, 8, 8, 1)
    assert (finished.folder / "runs" / "shared").is_dir()
    again = ddistill.load(finished.folder / "runs" / "sfddm_digits")
    assert np.array_equal(again.sample(3), run.sample(3))
    assert jax.config.jax_compilation_cache_dir.endswith("xla")  # that of the tests, not another


def test_callbacks_are_told_of_each_stage_in_order(finished):
    calls = finished.told.calls
    assert [call[:3] for call in calls if call[0] != "log"] == [
        ("begin", "teacher", 1),
        ("end", "teacher", 40),
        ("begin", "student", 2),
        ("end", "student", 20),
    ]
    assert calls[0] == ("begin", "teacher", 1, 2, 0)
    assert all(call[3] for call in calls if call[0] == "end")  # complete.json is there
    logs = [call for call in calls if call[0] == "log"]
    for name in ("teacher", "student"):
        lines = (finished.run.plan(name).folder / "metrics.jsonl").read_text().splitlines()
        wanted = [(row["step"], row["loss"]) for row in map(json.loads, lines)]
        assert [call[2:] for call in logs if call[1] == name] == wanted


def test_a_complete_run_is_opened_without_training(finished):
    told = Told()
    run = ddistill.train(plain(tiny()), workdir=finished.run.folder, callbacks=[told], quiet=True)
    assert told.calls == []
    assert run.plan("student").digest == finished.run.plan("student").digest


def test_a_callback_stops_a_run_and_the_same_call_continues(finished, tmp_path, capsys):
    arguments = {"workdir": tmp_path / "run", "cache": tmp_path / "shared"}
    with pytest.raises(Interrupted, match=r"a callback in stage 'teacher' at step 2\d.*continues"):
        ddistill.train(tiny(), callbacks=[Told(stops=20)], quiet=True, **arguments)
    told = Told()
    run = ddistill.train(tiny(), callbacks=[told], **arguments)
    assert told.calls[0][:4] == ("begin", "teacher", 1, 2)
    assert 20 <= told.calls[0][4] <= 21
    assert np.array_equal(run.sample(4), finished.run.sample(4))
    out = capsys.readouterr().out
    assert "stage 1 of 2, teacher: step 2" in out
    assert "compiling the train step (about" in out
    assert (tmp_path / "shared" / FILE).is_file()


@pytest.mark.parametrize("packed", [False, True])
def test_shared_stages_are_looked_for_where_the_program_looks(tmp_path, monkeypatch, packed):
    class Asked(Exception):
        """Ends the call where the folder of shared stages is known."""

    def prepare(config, workdir, cache, *_):
        raise Asked(cache)

    monkeypatch.setattr(run_training.experiment, "prepare", prepare)
    monkeypatch.setattr(run_training, "_prepare_jax", lambda cache: None)
    run = tmp_path / "run"
    (run / "shared" if packed else run).mkdir(parents=True)
    with pytest.raises(Asked) as asked:
        ddistill.train(tiny(), workdir=run)
    assert asked.value.args == ((run if packed else tmp_path) / "shared",)


def test_an_exception_of_a_callback_is_raised_and_the_checkpoint_stays(tmp_path):
    with pytest.raises(ZeroDivisionError, match="mine"):
        ddistill.train(tiny(), tmp_path / "run", callbacks=[Told(raises=20)], quiet=True)
    plan = ddistill.trained_run.open_run(tmp_path / "run").plan("teacher")
    assert saved_steps(plan) == [17]


def test_ctrl_c_saves_and_is_a_keyboard_interrupt(tmp_path):
    class Interrupting(ddistill.Callback):
        def on_log(self, stage, step, values):
            if step == 10:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT in stage 'teacher' at step"):
        ddistill.train(tiny(), tmp_path / "run", callbacks=[Interrupting()], quiet=True)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_end_the_process():
    with StopRequest(speaks=False, exits=False) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_no_signal_is_handled_outside_of_the_main_thread():
    handlers, failed = [], []
    before = signal.getsignal(signal.SIGINT)

    def enter():
        try:
            with StopRequest(exits=False) as stop:
                handlers.append(signal.getsignal(signal.SIGINT))
                stop.request("a callback")
                assert stop
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert failed == []
    assert handlers == [before]


@pytest.mark.parametrize(
    "config, arguments, message",
    [
        ("no_such_file.py", {}, "no_such_file.py does not exist"),
        (3, {}, "config=3 is a whole number; the name of a config file"),
        ({"name": "x"}, {}, r"config\.\w+ is missing"),
        (None, {"workdir": 3}, "workdir=3 is a whole number; a path is needed"),
        (None, {"cache": b"x"}, "cache=b'x' is a bytes; a path is needed"),
        (None, {"stage": "techer"}, "techer is not a stage.*Did you mean 'teacher'"),
    ],
)
def test_mistakes_are_errors_of_one_line(tmp_path, monkeypatch, config, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = plain(tiny()) if config is None else config
    with pytest.raises(ConfigError, match=message) as caught:
        ddistill.train(given, **{"workdir": "run", "quiet": True, **arguments})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_default_folder_follows_what_is_learnt(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    made = dataclasses.replace(tiny(), name="other")
    seen = []
    monkeypatch.setattr(
        ddistill.run_training.experiment, "prepare", lambda *a: seen.append(a) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        ddistill.train(made, quiet=True)
    with pytest.raises(ZeroDivisionError):
        ddistill.train("configs/sfddm_digits.py", quiet=True)
    assert [str(a[1]).split("-")[0] for a in seen] == ["runs/other", "runs/tiny"]
    assert str(seen[1][1]) == "runs/tiny"
    assert str(seen[0][2]) == "runs/shared"
