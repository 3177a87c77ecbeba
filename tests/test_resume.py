"""A run that is stopped at any moment ends as the one that was not: bit for bit, on CPU.

Whole runs of `ddistill.main` in processes of their own; `driver.py` says how they are stopped.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import (
    LOGGED,
    STEPS,
    differences,
    plans_of,
    saved_state,
    saved_steps,
    snapshot,
    tiny_settings,
)

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
STAGES = ("teacher", "student")
CONFIG = """
from runs import tiny_settings
from ddistill.recipes import to_config

def get_config():
    return to_config(tiny_settings())
"""
DEATHS = ("teacher:17:saved", "teacher:34:writing", "student:17:saved", "student:34:writing")
# What depends on the clock and not on the training.
_TIMES = {"images_per_second", "data_wait_share", "seconds", "compile_seconds"}


@dataclass(frozen=True)
class Launcher:
    """Starts runs; they share the compilation cache of all tests."""

    root: Path
    config: str = CONFIG

    def __post_init__(self):
        # Once: a run that starts while the file is written anew would read half of it.
        (self.root / "config.py").write_text(self.config)

    def run(self, name: str, death: str = "", **changes: str) -> subprocess.CompletedProcess:
        """One process of the run `root/name/run`; its cache is `root/name/shared`.

        Args:
          name: of the run.
          death: how it ends, see driver.py.
          changes: to the environment.
        """
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "DDISTILL_TEST_DEATH": death,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
            **changes,
        }
        flags = [f"--config={self.root / 'config.py'}", f"--workdir={self.workdir(name)}"]
        return subprocess.run(
            [sys.executable, str(TESTS / "driver.py"), *flags],
            env=environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def workdir(self, name: str) -> Path:
        return self.root / name / "run"


def succeeded(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(plan) -> list[dict]:
    """The lines of metrics.jsonl; every one has to be whole."""
    return [json.loads(line) for line in (plan.folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(ours: dict, theirs: dict, steps: tuple[int, ...]) -> None:
    """Every leaf of the state (step, weights, optimiser, averages) of every stage is the same."""
    for name in STAGES:
        for step in steps:
            a, b = saved_state(ours[name], step), saved_state(theirs[name], step)
            assert int(a.step) == step
            assert differences(a, b) == [], f"{name} at step {step}"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory) -> Launcher:
    return Launcher(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def straight(launcher):
    """The stages of the run that nobody stops."""
    succeeded(launcher.run("straight"))
    return plans_of(tiny_settings(), launcher.workdir("straight"))


def test_programs_as_users_compile_them_learn_the_same(launcher, straight):
    """With the options of main alone and all optimisations, which tests leave out for time."""
    theirs = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    succeeded(launcher.run("users", **theirs))
    found = plans_of(tiny_settings(), launcher.workdir("users"))
    for name in STAGES:
        losses = [[row["loss"] for row in rows(plans[name])] for plans in (found, straight)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        a, b = (saved_state(plans[name], STEPS) for plans in (found, straight))
        assert differences(a, b) != []  # the programs are others


def test_the_straight_run_is_worth_comparing_with(straight):
    for name in STAGES:
        plan = straight[name]
        assert saved_steps(plan) == [17, 34, STEPS]
        assert [row["step"] for row in rows(plan)] == LOGGED
        early, late = saved_state(plan, 17), saved_state(plan, STEPS)
        changed = {path.split("[")[0] for path in differences(early, late)}
        assert changed == {".step", ".params", ".opt_state", ".ema"}
        assert differences(late.ema["0.3"], late.ema["0.99"])
        assert differences(late.ema["0.3"], late.params["student"])
    teacher, student = (saved_state(straight[name], STEPS) for name in STAGES)
    assert differences(teacher.params, student.params)


@pytest.fixture(scope="module")
def chains(launcher, straight):
    """The two runs that are stopped and go on, side by side; `straight` has compiled for both."""
    with ThreadPoolExecutor(2) as pool:
        yield {f.__name__: pool.submit(f, launcher) for f in (kill_and_go_on, ask_and_go_on)}


@pytest.fixture(scope="module")
def killed(chains):
    return chains["kill_and_go_on"].result()


@pytest.fixture(scope="module")
def asked(chains):
    return chains["ask_and_go_on"].result()


def kill_and_go_on(launcher: Launcher):
    """A run that is killed four times, with what was on disk after each kill and what it said."""
    story = []
    for death in (
        "teacher:17:saved",
        "teacher:34:writing",
        "student:17:saved",
        "student:34:writing",
    ):
        done = launcher.run("killed", death)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        plan = plans_of(tiny_settings(), launcher.workdir("killed"))[death.split(":")[0]]
        unfinished = [x.name for x in (plan.folder / "checkpoints").glob("*orbax-checkpoint-tmp*")]
        story.append((death, saved_steps(plan), unfinished, plan.manifest(), done.stdout))
    output = succeeded(launcher.run("killed"))
    return plans_of(tiny_settings(), launcher.workdir("killed")), story, output


def test_kills_leave_what_was_saved(killed):
    _, story, _ = killed
    for death, steps, unfinished, manifest, _ in story:
        assert steps == [17], death
        assert manifest is None, death
        assert len(unfinished) == ("writing" in death), death


def test_a_killed_run_goes_on_from_its_last_checkpoint(killed):
    _, story, last = killed
    said = [*(output for *_, output in story), last]
    assert "going on" not in said[0]
    assert "teacher: going on from the checkpoint at step 17" in said[1]
    assert "teacher: going on from the checkpoint at step 17" in said[2]
    assert "teacher: complete (40 steps), found on disk" in said[3]
    assert "student: going on from the checkpoint at step 17" in said[3]
    assert "student: going on from the checkpoint at step 17" in said[4]


def test_a_killed_run_ends_as_the_straight_one(killed, straight):
    plans, _, _ = killed
    assert_same_run(plans, straight, (17, 34, STEPS))


def test_a_killed_run_has_every_logged_step_once(killed, straight):
    plans, _, _ = killed
    for name in STAGES:
        ours, theirs = rows(plans[name]), rows(straight[name])
        assert [row["step"] for row in ours] == LOGGED
        for a, b in zip(ours, theirs, strict=True):
            assert {k: v for k, v in a.items() if k not in _TIMES} == {
                k: v for k, v in b.items() if k not in _TIMES
            }


def test_a_killed_run_leaves_no_unfinished_checkpoint(killed):
    plans, _, _ = killed
    for plan in plans.values():
        assert not list((plan.folder / "checkpoints").glob("*tmp*"))
        assert not (plan.folder / "checkpoints" / "damaged").exists()


def test_seconds_of_training_are_carried_over(killed):
    plans, _, _ = killed
    for plan in plans.values():
        seconds = [row["seconds"] for row in rows(plan)]
        assert seconds == sorted(seconds)
        assert plan.manifest().train_seconds == pytest.approx(seconds[-1])


def test_a_finished_run_is_found_and_not_touched(killed, launcher):
    plans, _, _ = killed
    before = {name: snapshot(plan.folder) for name, plan in plans.items()}
    output = succeeded(launcher.run("killed"))
    for name, plan in plans.items():
        assert f"{name}: complete (40 steps), found on disk" in output
        assert snapshot(plan.folder) == before[name]
    assert "step 0" not in output


def ask_and_go_on(launcher: Launcher):
    """The teacher is already there; the student is asked to stop in its step 23."""
    shutil.copytree(
        launcher.root / "straight" / "shared", launcher.workdir("asked").parent / "shared"
    )
    stopped = launcher.run("asked", "student:23:sigterm")
    plans = plans_of(tiny_settings(), launcher.workdir("asked"))
    left = saved_steps(plans["student"]), plans["student"].manifest()
    return plans, stopped, left, succeeded(launcher.run("asked"))


def test_sigterm_saves_and_says_how_to_go_on(asked, launcher):
    plans, stopped, (steps, manifest), _ = asked
    assert stopped.returncode == 143  # else `main && export` would go on
    assert stopped.stderr == "SIGTERM: stopping after this step; Ctrl-C to stop now\n"
    assert "Stopped by SIGTERM in stage 'student' at step 23" in stopped.stdout
    command = stopped.stdout.split("give the same command again:")[1]
    assert f"--workdir={launcher.workdir('asked')}" in command
    assert steps == [17, 23]
    assert int(saved_state(plans["student"], 23).step) == 23
    assert manifest is None


def test_after_sigterm_the_run_ends_as_the_straight_one(asked, straight):
    plans, _, _, output = asked
    assert "student: going on from the checkpoint at step 23" in output
    assert_same_run(plans, straight, (34, STEPS))
    assert [row["step"] for row in rows(plans["student"])] == sorted([*LOGGED, 23])
