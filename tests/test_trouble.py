"""Trouble while a run works: losses that explode, disks that fill up, folders that cannot be used.

All in this process, through `ddistill.main.main`, so that exit status and message are the user's.
"""

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from runs import LOGGED, differences, one_stage, plans_of, saved_state, saved_steps

from ddistill import data, experiment, main
from ddistill.errors import TrainingError
from ddistill.recipes import to_config
from ddistill.runtime.console import Reporter
from ddistill.runtime.interrupt import StopRequest
from ddistill.runtime.metrics_log import MetricsLog, read_metrics
from ddistill.settings import OptimizerSettings, Settings
from ddistill.training.initial import abstract_state, initial_state, memory_budget
from ddistill.training.loop import StageRun
from ddistill.training.run_context import RunContext


def launch(wanted: Settings, workdir: Path) -> tuple[int, str, str]:
    """Runs settings as the command line would; returns exit status, stdout and stderr."""

    def start(argv, program):
        return experiment.run(
            to_config(wanted), workdir, workdir.parent / "shared", "", "the command"
        )

    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "_main", start)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main.main([])
            except SystemExit as stop:
                status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


# ------------------------------------------------------------------------------ losses that explode

# The rate jumps by 1e38 for the update of step 21, so that step 22 sees the damage.
EXPLODING = OptimizerSettings(learning_rate=1e-3, schedule="step", milestones=(0.5,), decay=1e38)


@pytest.fixture(scope="module")
def exploded(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("exploded") / "run"
    done = launch(one_stage(EXPLODING), workdir)
    return plans_of(one_stage(EXPLODING), workdir)["teacher"], done


def test_a_loss_that_is_not_finite_stops_the_run(exploded):
    plan, (status, _, err) = exploded
    text = one_line(err)
    assert status == main.RUN_ERROR
    assert "Stage 'teacher', step 22: " in text
    named = text.split("step 22: ")[1].split(" is not finite")[0]
    assert {"loss", "grad_norm"} <= set(named.split(", "))
    assert "the checkpoint at step 17 is kept" in text
    assert "learning rate" in text
    assert plan.manifest() is None


def test_the_last_good_checkpoint_is_kept(exploded):
    plan, _ = exploded
    assert saved_steps(plan) == [17]
    state = saved_state(plan, 17)
    assert int(state.step) == 17
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


def test_metrics_that_are_not_finite_are_not_logged(exploded):
    plan, _ = exploded
    rows = read_metrics(plan.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 17, 20]
    assert all(np.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))


def test_it_stops_there_again(exploded):
    plan, (_, _, first) = exploded
    status, out, err = launch(one_stage(EXPLODING), plan.folder.parent.parent)
    assert "going on from the checkpoint at step 17" in out
    assert out.startswith("\n".join(data.summary(data.load({"name": "digits"}, "train"))))
    assert (status, err) == (main.RUN_ERROR, first)
    assert saved_steps(plan) == [17]


def test_an_update_that_has_just_overflowed_is_not_saved(tmp_path):
    settings = one_stage()
    plan = plans_of(settings, tmp_path / "run")["teacher"]
    images = data.load(settings.data, "train")
    run = StageRun(plan, RunContext(settings, images, Reporter(), StopRequest()))
    state = initial_state(plan)
    run._save(10, state)
    broken = jax.tree.map(lambda x: x.at[..., 0].set(jnp.inf), state.params)
    with pytest.raises(TrainingError, match=r"step 17: parameter .* of the student is not finite"):
        run._save(17, state.replace(params=broken))
    run.checkpoints.close()
    assert saved_steps(plan) == [10]


def test_without_a_checkpoint_none_is_promised(tmp_path):
    at_once = OptimizerSettings(learning_rate=1e35)
    status, _, err = launch(one_stage(at_once), tmp_path / "run")
    assert status == main.RUN_ERROR
    assert "Stage 'teacher', step 2: " in err
    assert "is kept" not in err
    assert saved_steps(plans_of(one_stage(at_once), tmp_path / "run")["teacher"]) == []


# ------------------------------------------------------------------------------------- full disks


def mount(folder: Path, options: str) -> None:
    """Mounts a file system of its own, or skips the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")


PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A disk of its own with room for a few checkpoints."""
    disk = tmp_path / "disk"
    mount(disk, f"size={256 * PAGE}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Leaves `leave` pages free; every file takes at least one."""
    ballast, found = disk / "ballast", os.statvfs(disk)
    ballast.write_bytes(b"\0" * (found.f_bavail * found.f_frsize - leave * PAGE))
    return ballast


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The stage of a run that had all the room it wanted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert launch(one_stage(keep=10), workdir)[0] == 0
    return plans_of(one_stage(keep=10), workdir)["teacher"]


def says_that_the_disk_is_full(text: str) -> None:
    text = one_line(text)
    assert "The disk is full" in text
    assert "Free some space and give the same command again" in text
    assert "last complete checkpoint is kept" in text


# One page: not even the settings. 12: no checkpoint of 14 files. 40: one or two of them.
@pytest.mark.parametrize("leave, saves", [(1, False), (12, False), (40, True)])
def test_a_full_disk_is_one_line_and_the_run_can_go_on(tiny_disk, finished, leave, saves):
    wanted = one_stage(keep=10)
    ballast = fill(tiny_disk, leave)
    status, _, err = launch(wanted, tiny_disk / "run")
    assert status == main.RUN_ERROR
    says_that_the_disk_is_full(err)
    plan = plans_of(wanted, tiny_disk / "run")["teacher"]
    kept = saved_steps(plan)
    assert bool(kept) == saves
    assert plan.manifest() is None

    ballast.unlink()
    status, out, err = launch(wanted, tiny_disk / "run")
    assert status == 0, err
    if saves:
        assert f"going on from the checkpoint at step {kept[-1]}" in out
    assert differences(saved_state(plan, 40), saved_state(finished, 40)) == []
    assert [row["step"] for row in read_metrics(plan.folder / "metrics.jsonl")] == LOGGED


@pytest.mark.slow
def test_a_full_disk_on_the_command_line(tiny_disk, tmp_path):
    """A process of its own, for all that libraries print on the way."""
    config = tmp_path / "config.py"
    config.write_text("from test_trouble import config as get_config\n")
    fill(tiny_disk, 40)
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(tests / "driver.py"), f"--config={config}", "--workdir=disk/run"],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")]),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == main.RUN_ERROR, done.stderr
    says_that_the_disk_is_full(done.stderr)


def config():
    """What the process above runs."""
    return to_config(one_stage(keep=10))


FULL = {
    "at once": ("save", OSError(errno.ENOSPC, "No space left on device", "/data/x")),
    "quota": ("wait_until_finished", OSError(errno.EDQUOT, "Disk quota exceeded")),
    "in the thread that writes": (
        "wait_until_finished",
        ValueError("RESOURCE_EXHAUSTED: Failed to write 412 bytes: No space left on device"),
    ),
}


@pytest.mark.parametrize("method, error", FULL.values(), ids=FULL.keys())
def test_a_disk_that_fills_up_while_saving(tmp_path, monkeypatch, method, error):
    """The same where mounting is not allowed."""

    def full(self, *args, **kwargs):
        raise RuntimeError("checkpointing failed") from error

    monkeypatch.setattr(ocp.CheckpointManager, method, full)
    status, _, err = launch(one_stage(), tmp_path / "run")
    assert status == main.RUN_ERROR
    assert "The disk is full" in one_line(err)


def test_metrics_survive_a_full_disk(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, "s", 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 0.5})
    log.close()
    before = (tmp_path / "metrics.jsonl").read_text()

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            MetricsLog(tmp_path, "s", 2)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    MetricsLog(tmp_path, "s", 2).close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "s", "step": 1}\n{"stage": "s", "st')
    log = MetricsLog(tmp_path, "s", 5)
    log.write(2, {"loss": 1.0})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


# ------------------------------------------------------------------------ folders of no use


def test_a_workdir_below_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    status, _, err = launch(one_stage(), tmp_path / "file" / "run")
    text = one_line(err)
    assert status == main.RUN_ERROR
    assert "Cannot write to the run's folder" in text
    assert str(tmp_path / "file") in text
    assert "Choose another --workdir" in text
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    status, _, err = launch(one_stage(), tmp_path / "run")
    assert status == main.RUN_ERROR
    assert f"Cannot write to the run's folder ({tmp_path / 'run'})" in one_line(err)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_read_only_disk(tmp_path):
    mount(tmp_path / "disk", "size=1m,ro")
    try:
        status, _, err = launch(one_stage(), tmp_path / "disk" / "run")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)
    assert status == main.RUN_ERROR
    text = one_line(err)
    assert "Cannot write to the run's folder" in text
    assert "Read-only file system" in text


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch, number):
    """Permission bits do not stop root, so the system's answer is put in place."""

    def refuse(self, *args, **kwargs):
        raise OSError(number, "no", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    status, _, err = launch(one_stage(), tmp_path / "run")
    assert status == main.RUN_ERROR
    assert f"Cannot write to the run's folder ({tmp_path / 'run'})" in one_line(err)


def test_other_errors_keep_their_traceback(tmp_path, monkeypatch):
    """A bug is no disk trouble: hiding where it is would help nobody."""

    def broken(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(StageRun, "run", broken)
    with pytest.raises(ZeroDivisionError):
        launch(one_stage(), tmp_path / "run")


def test_the_memory_of_a_stage_is_counted_before_anything_compiles(tmp_path):
    plan = plans_of(one_stage(), tmp_path / "run")["teacher"]
    state = abstract_state(plan)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    # Weights, gradients, two Adam moments and the averages, four bytes each.
    copies = 4 + len(plan.settings.ema)
    said = memory_budget(state)
    assert said.startswith(f"{count / 1e6:.2f} M parameters; ")
    assert f"{4 * copies * count / 2**20:.0f} MiB" in said
