"""Several processes as one run: they learn what one process learns, and survive one another.

Two real processes on this machine, with gloo between their CPU devices; `driver.py` says how one of
them is killed.
"""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image
from runs import differences, many_hosts_settings, plans_of, saved_state, saved_steps

from ddistill.runtime.ending import TERMINATED

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
CONFIG = """
from runs import many_hosts_settings
from ddistill.recipes import to_config

def get_config():
    return to_config(many_hosts_settings())
"""
# Steps of each: some past the checkpoint at 17.
STAGES = {"teacher": 24, "students": 24}


class Cluster:
    """Starts the processes of runs; they share the compilation cache of all tests."""

    def __init__(self, root: Path):
        self.root = root
        (root / "config.py").write_text(CONFIG)

    def run(self, name: str, deaths=("", ""), flags=()) -> list[subprocess.CompletedProcess]:
        """All processes of the run `root/name/run`, one for each entry of `deaths`."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        started = [
            self._start(name, death, [*flags, *self._place(i, len(deaths), port)], len(deaths))
            for i, death in enumerate(deaths)
        ]
        ended = []
        for process in started:
            out, err = process.communicate(timeout=240)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        return ended

    @staticmethod
    def _place(index: int, count: int, port: int) -> list[str]:
        if count == 1:
            return []
        return [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process_id={index}"]

    def _start(self, name: str, death: str, flags: list[str], count: int) -> subprocess.Popen:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(4 // count),
            "DDISTILL_TEST_DEATH": death,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, str(TESTS / "driver.py"), f"--config={self.root / 'config.py'}"]
        return subprocess.Popen(
            [*command, f"--workdir={self.workdir(name)}", *flags],
            env=environment,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def workdir(self, name: str) -> Path:
        return self.root / name / "run"

    def final(self, name: str, stage: str):
        plan = plans_of(many_hosts_settings(), self.workdir(name))[stage]
        return saved_state(plan, STAGES[stage])

    def previews(self, name: str) -> dict[Path, np.ndarray]:
        """The pixels of a run's previews, by path in the folder of previews."""
        folder = self.workdir(name) / "previews"
        return {
            path.relative_to(folder): np.asarray(Image.open(path), int)
            for path in sorted(folder.rglob("*.png"))
        }


def all_succeeded(ended, status: int = 0) -> str:
    for done in ended:
        assert done.returncode == status, done.stdout + done.stderr
    return ended[0].stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return Cluster(tmp_path_factory.mktemp("hosts"))


@pytest.fixture(scope="module")
def unbroken(cluster):
    """The output of a run of two processes that nothing disturbs."""
    first, second = cluster.run("unbroken")
    all_succeeded([first, second])
    assert "students: 24 steps" in first.stdout
    assert "evaluation: done" in first.stdout
    # Gloo's threads write there too, in pieces that mix: only our own words can be looked for.
    assert [word for word in (*STAGES, "evaluation", "steps") if word in second.stdout] == []
    return first.stdout


def test_two_processes_learn_what_one_learns(cluster, unbroken):
    all_succeeded(cluster.run("alone", deaths=("",)))
    for stage in STAGES:
        found, expected = cluster.final("unbroken", stage), cluster.final("alone", stage)
        chex.assert_trees_all_close(found.params, expected.params, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(found.ema, expected.ema, rtol=1e-4, atol=1e-5)
    images = [
        np.load(next((cluster.workdir(name) / "samples").glob("*.npz")))["images"]
        for name in ("unbroken", "alone")
    ]
    np.testing.assert_allclose(*images, atol=1e-3)
    assert cluster.previews("unbroken").keys() == cluster.previews("alone").keys()
    assert {path.parent.name for path in cluster.previews("unbroken")} == STAGES.keys()
    for name, picture in cluster.previews("unbroken").items():
        assert np.abs(picture - cluster.previews("alone")[name]).max() <= 1


@dataclass(frozen=True)
class Stop:
    """How a run was stopped: what its processes did, the stage's checkpoints, and what came next.

    Attributes:
      stage: the stage of the kill or the signal.
      ended: both processes.
      saved: steps with a checkpoint of the stage, then.
      manifest: what says that the stage is complete, then.
      after: the first process of the next run by the same command; its output ends early where the
        second process is killed.
    """

    stage: str
    ended: list[subprocess.CompletedProcess]
    saved: list[int]
    manifest: dict | None
    after: subprocess.CompletedProcess


# A kill of the first process, a signal to the second one and a kill of that one. The processes ask
# one another about signals every few seconds and at the first steps of a stage: the signal stops
# them in the teacher's last steps or in the students' first.
STOPS = (("teacher:17:saved", ""), ("", "teacher:22:sigterm"), ("", "students:17:saved"))
KILLED_0, SIGNALLED, KILLED_1 = range(3)


@pytest.fixture(scope="module")
def stops(cluster, unbroken):
    """One run of two processes that is stopped in three ways and goes on after each."""
    found = []
    for deaths in STOPS:
        stage = max(deaths).split(":")[0]
        ended = cluster.run("stopped", deaths)
        plan = plans_of(many_hosts_settings(), cluster.workdir("stopped"))[stage]
        found.append((stage, ended, saved_steps(plan), plan.manifest()))
    after = [ended for _, ended, *_ in found[1:]] + [cluster.run("stopped")]
    all_succeeded(after[-1])
    return [Stop(*stop, next_run[0]) for stop, next_run in zip(found, after)]


@pytest.fixture(scope="module")
def same_as_unbroken(cluster, stops):
    return [
        differences(cluster.final("stopped", stage), cluster.final("unbroken", stage))
        for stage in STAGES
    ]


@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed_and_both_go_on(cluster, stops, same_as_unbroken, killed):
    stop = stops[KILLED_1 if killed else KILLED_0]
    assert stop.ended[killed].returncode == -9
    assert stop.ended[1 - killed].returncode not in (0, -9), "the other one did not notice"
    assert stop.saved[-1] == 17
    assert stop.manifest is None
    assert f"{stop.stage}: going on from the checkpoint at step 17" in stop.after.stdout
    # The preview of step 17 was still to be made.
    preview = Path(stop.stage, "0000017.png")
    assert np.array_equal(*(cluster.previews(name)[preview] for name in ("stopped", "unbroken")))
    assert same_as_unbroken == [[], []]


def test_a_signal_to_one_stops_all_and_the_same_command_goes_on(stops, same_as_unbroken):
    # 143 of both, also of the one that had no signal.
    stop = stops[SIGNALLED]
    out = all_succeeded(stop.ended, TERMINATED)
    assert any(line.startswith("Stopped by") for line in out.splitlines())
    assert same_as_unbroken == [[], []]


def test_wrong_settings_end_all_processes_with_one_line(cluster):
    for done in cluster.run("wrong", flags=["--config.training.mesh.data=3"]):
        assert done.returncode == 2
        assert "config.training.mesh" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_checkpoint_of_two_processes_is_read_by_one(cluster, unbroken):
    out = all_succeeded(cluster.run("unbroken", deaths=("",)))
    assert "students: complete (24 steps), found on disk" in out


def test_half_of_the_flags_is_refused(tmp_path):
    found = Cluster(tmp_path)
    (done,) = found.run("x", deaths=("",), flags=["--processes=2"])
    assert done.returncode == 2
    assert "--processes needs --coordinator, --process_id too" in done.stderr
