"""Signals: answered at once, stopped cleanly, stopped now, and the exit status of each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import one_stage
from test_trouble import launch

from ddistill.runtime import ending, interrupt
from ddistill.runtime.interrupt import Interrupted, StopRequest

ROOT = Path(__file__).parent.parent
# What compiling is to signals: the main thread is in one long call of another language, so that no
# handler of Python's runs. hashlib lets other threads work meanwhile, as XLA does.
COMPILING = """
import hashlib, sys
from ddistill.runtime.interrupt import StopRequest

with StopRequest() as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))
    print("compiled", bool(stop), stop.status, flush=True)
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def compiling() -> Iterator:
    """Starts a process that would take about an hour to compile."""
    started: list[subprocess.Popen[str]] = []

    def begin(rounds: int = 10**10) -> subprocess.Popen[str]:
        # More rounds than an int of C holds are refused.
        process = start("-c", COMPILING, str(min(rounds, 2**31 - 1)))
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)  # into the long call
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "number, again",
    [
        (signal.SIGINT, "again"),
        (signal.SIGTERM, "Ctrl-C"),
        (signal.SIGUSR1, "Ctrl-C"),
        (signal.SIGUSR2, "Ctrl-C"),
    ],
)
def test_a_signal_is_answered_while_something_compiles_and_ctrl_c_stops_now(
    compiling, number, again
):
    process = compiling()
    process.send_signal(number)
    line = process.stderr.readline()
    assert line == f"{number.name}: stopping after this step; {again} to stop now\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == ending.INTERRUPTED
    assert process.stderr.read() == (
        "SIGINT: stopped at once; the last complete checkpoint is kept\n"
    )


def test_a_second_sigterm_changes_nothing(compiling):
    """SLURM sends it ahead of the time limit and again at the limit."""
    process = compiling(3_000_000)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline().startswith("SIGTERM: stopping")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "compiled True 143\n", "")


def test_handlers_are_put_back_and_nothing_stays_open():
    before = [signal.getsignal(number) for number in StopRequest._SIGNALS]
    files = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._handle
    assert [signal.getsignal(number) for number in StopRequest._SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert len(files) == (len(os.listdir("/proc/self/fd")) if files else 0)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_seen_at_the_next_look_and_names_its_status(monkeypatch, number, status):
    said: list[str] = []
    monkeypatch.setattr(interrupt, "tell", said.append)
    with StopRequest() as stop:
        stop.check("before")
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="here"):
            stop.check("here")
        assert stop.status == status
    assert said == [f"{number.name}: stopping after this step; {said[0].split('; ')[1]}"]


def test_of_several_processes_one_answers(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(interrupt, "tell", said.append)
    with StopRequest(speaks=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
    assert said == []
    assert StopRequest().status == 143  # another process had the signal


# -------------------------------------------------------------------------------- exit statuses


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_run_that_is_stopped_does_not_end_like_a_complete_one(tmp_path, number, status):
    def stopped(*_):
        os.kill(os.getpid(), number)
        raise Interrupted("stage 'teacher' at step 3")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddistill.experiment.run_stages", stopped)
        found, out, err = launch(one_stage(), tmp_path / "run")
    assert (found, err) == (status, "")
    assert f"Stopped by {number.name} in stage 'teacher' at step 3; everything" in out
    assert out.splitlines()[-1].strip() == "the command"


def test_ctrl_c_before_anything_is_trained_is_one_line(tmp_path, monkeypatch, capfd):
    def planning(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddistill.data.load", planning)
    assert launch(one_stage(), tmp_path / "run")[0] == 130
    assert capfd.readouterr().err == "Stopped by SIGINT; what is on disk is kept.\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "program, words",
    [
        ("compare", ["somewhere"]),
        ("record", ["somewhere"]),
        ("evaluate", ["somewhere", "--reference=x"]),
        ("export.__main__", ["somewhere", "out", "--to=safetensors"]),
        ("data.prepare", ["cifar10"]),
    ],
)
def test_ctrl_c_is_one_line_and_a_status_everywhere(monkeypatch, capfd, program, words):
    module = __import__(f"ddistill.{program}", fromlist=["main"])

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for name in ("compare", "record", "_options", "export", "prepare"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(SystemExit) as stopped:
        module.main(words)
    assert stopped.value.code == ending.INTERRUPTED
    assert capfd.readouterr().err == "Stopped by SIGINT.\n"


@pytest.mark.parametrize("program", ["main", "evaluate", "export", "compare"])
def test_ctrl_c_while_a_program_is_imported_is_no_traceback(program):
    process = start("-v", "-m", f"ddistill.{program}", "--help")
    for line in process.stderr:  # -v tells what is imported
        if "import 'numpy'" in line or "import 'absl" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = [line for line in process.stderr.read().splitlines() if "Traceback" in line]
    assert process.wait(timeout=60) == ending.INTERRUPTED
    assert rest == []


def test_importing_the_library_leaves_signals_alone():
    code = "import signal as s; import ddistill; print(s.getsignal(s.SIGINT).__name__)"
    assert start("-c", code).communicate()[0] == "default_int_handler\n"


def test_a_reader_that_ends_does_not_end_the_run():
    """With `| tee log` Ctrl-C ends tee too, while the run still has to save."""
    code = """
import time
from ddistill.runtime.console import Reporter
reporter = Reporter()
for _ in range(3):
    reporter.say("line")
    time.sleep(0.05)
raise SystemExit(9)
"""
    process = start("-c", code)
    process.stdout.close()
    assert process.wait(timeout=60) == 9
    assert process.stderr.read() == ""
    process.stderr.close()
