"""Stages of two and three networks that go on from one another: starts, kills and turns."""

import dataclasses
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import Notes, differences, manifest, plans_of, saved_state, saved_steps, tiny_settings
from test_resume import Launcher, rows, succeeded

from ddistill import data
from ddistill.errors import TrainingError
from ddistill.runtime.files import write_json
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.settings import (
    GridSettings,
    MeshSettings,
    OptimizerSettings,
    StageSettings,
    StudentsSettings,
)
from ddistill.students import take
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.initial import abstract_state
from ddistill.training.loop import StageRun
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import resumed, run_stages

CONFIG = """
from ddistill.recipes import to_config
from test_resumed_stages import arm, settings

def get_config():
    arm()
    return to_config(settings())
"""
ADAM = OptimizerSettings(learning_rate=1e-3, b1=0.5)
SMALL = {"name": "tiny", "num_classes": 10, "width": 4, "dropout": 0.1}
K2 = StudentsSettings(count=2, partition="classes")
ENDS = {"teacher": 8, "tsm": 8, "dm": 7, "adm": 10}


def settings(**stages):
    """A teacher and a small student's way to one step; or the teacher and other stages."""
    training = {"log_every": 5, "checkpoint_every": 5, "mesh": MeshSettings(student=1, data=1)}
    full = tiny_settings(**training)
    teacher = dataclasses.replace(
        full.stages["teacher"], steps=ENDS["teacher"], accumulate=1, optimizer=ADAM, ema=(0.9,)
    )
    stages = {"teacher": teacher, **(stages or small_students())}
    return dataclasses.replace(full, stages=stages, pipeline=tuple(stages))


def stage(name, **changes):
    """A stage of a one-step student of the teacher."""
    objective = {"name": name, **changes.pop("objective", {})}
    common = {
        "teacher": "teacher",
        "grid": GridSettings(steps=1),
        "batch_size": 8,
        "optimizer": ADAM,
        "ema": (0.9,),
    }
    return StageSettings(objective=objective, **{**common, **changes})


def small_students():
    small = {"network": SMALL, "prediction": "v", "conditional": True}
    many = {**small, "students": K2}
    made = {"sampler": "ddim", "shard": 2}
    judged = {"features": ("last",)}
    return {
        "pairs": StageSettings(
            objective={"name": "pairs", **made},
            teacher="teacher",
            steps=5,
            batch_size=4,
            grid=GridSettings(steps=2),
        ),
        "tsm": stage("tsm", steps=ENDS["tsm"], **{**small, "grid": GridSettings()}),
        "dm": stage("dmd", steps=ENDS["dm"], init="tsm", pairs="pairs", **many),
        "adm": stage("dmd2", objective=judged, steps=ENDS["adm"], resume="dm", **many),
    }


def arm():
    """In a run of driver.py: dies while the file of pairs that it was told is being written."""
    name, number, _ = (os.environ.get("DDISTILL_TEST_DEATH") or "::").split(":")
    if name == "pairs":
        replace = os.replace

        def guarded(source, target, **kwargs):
            if os.path.basename(os.fsdecode(target)) == f"{int(number):05d}.npz":
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(source, target, **kwargs)

        os.replace = guarded


# ------------------------------------------------------------------------------ kills, on disk

KILLS = ("teacher:5:saved", "pairs:1:writing", "tsm:5:writing", "dm:5:saved", "adm:5:saved")


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """The run that nobody stops and the one that is killed in every stage, side by side."""
    launcher = Launcher(tmp_path_factory.mktemp("resumed"), CONFIG)
    with ThreadPoolExecutor(2) as pool:
        straight, killed = pool.submit(launcher.run, "straight"), pool.submit(kill, launcher)
        succeeded(straight.result())
        plans = {n: plans_of(settings(), launcher.workdir(n)) for n in ("straight", "killed")}
        return plans["straight"], plans["killed"], killed.result()


def kill(launcher):
    """What was said by the run after each kill, and what the killed stage had on disk before."""
    said, left = [], []
    for death in KILLS:
        done = launcher.run("killed", death)
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        said.append(done.stdout)
        plan = plans_of(settings(), launcher.workdir("killed"))[death.split(":")[0]]
        assert plan.manifest() is None, death
        left.append(saved_steps(plan))
    return [*said, succeeded(launcher.run("killed"))], left


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_the_straight_one(stories):
    straight, killed, _ = stories
    for name, end in ENDS.items():
        ours, theirs = (saved_state(plans[name], end) for plans in (killed, straight))
        assert int(ours.step) == end
        assert differences(ours, theirs) == [], name
    for path in sorted((straight["pairs"].folder / "pairs").glob("*.npz")):
        ours = killed["pairs"].folder / "pairs" / path.name
        assert ours.read_bytes() == path.read_bytes()
    assert len(list((killed["pairs"].folder / "pairs").glob("*.npz"))) == 3
    clocks = {"images_per_second", "data_wait_share", "seconds", "compile_seconds"}
    for name in ENDS:
        ours, theirs = (
            [{k: v for k, v in row.items() if k not in clocks} for row in rows(plans[name])]
            for plans in (killed, straight)
        )
        assert ours == theirs, name


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(stories):
    _, _, (said, left) = stories
    assert left == [[5], [], [], [5], [5]]
    assert "teacher: going on from the checkpoint at step 5" in said[1]
    assert "dm: going on from the checkpoint at step 5" in said[4]
    assert "adm: going on from the checkpoint at step 5" in said[5]
    for name in ("teacher", "tsm", "dm"):
        assert f"{name}: complete ({ENDS[name]} steps), found on disk" in said[5]


@pytest.mark.slow
def test_a_resumed_stage_counts_on(stories):
    """Every optimiser has seen the updates of both stages: 7 and, of the student's, 2 of 10."""
    straight, _, _ = stories
    state = saved_state(straight["adm"], ENDS["adm"])
    for name, wanted in {"student": 7 + 2, "fake": 7 + 10, "discriminator": 10}.items():
        np.testing.assert_array_equal(updates(state, name), wanted)
    before = saved_state(straight["dm"], ENDS["dm"])
    assert differences(state.params["student"], before.params["student"])
    for k in range(2):
        assert differences(take(state.params, k), take(state.params, 1 - k))


def updates(state, name):
    """How many updates the optimiser of a network has made."""
    counts = optax.tree.get_all_with_path(state.opt_state[name], "count")
    assert counts, state.opt_state[name]
    return np.asarray(counts[0][1])


# -------------------------------------------------------------------- what a stage starts from


def pretend(plan, seed):
    """Makes a stage complete with random numbers for its state, which are returned."""
    rng = np.random.default_rng(seed)

    def fill(x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.full(x.shape, plan.settings.steps, x.dtype)
        return jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype)

    state = jax.tree.map(fill, abstract_state(plan))
    if state.diverged is not None:
        state = state.replace(diverged=jnp.zeros_like(state.diverged))
    checkpoints = Checkpoints(plan.folder / "checkpoints", keep=2)
    checkpoints.save(plan.settings.steps, state, {}, 1.0)
    checkpoints.wait()
    checkpoints.close()
    write_json(plan.manifest_path, manifest(plan))
    return state


@pytest.fixture
def started(tmp_path, monkeypatch):
    """`started(stages, name, pairs)`: earlier states, and the one that `name` begins to train."""
    found = []

    def train(run, state, step, inputs):
        found.append(jax.tree.map(np.asarray, state))
        assert step == 0
        raise Interrupted("it has begun")

    monkeypatch.setattr(StageRun, "_train", train)

    def start(wanted, name):
        plans = plans_of(wanted, tmp_path / "run")
        before = {}
        for i, plan in enumerate(plans.values()):
            if plan.name == name:
                break
            if plan.objective.trains.kind != "pairs":
                before[plan.name] = pretend(plan, i)
        images = data.load(wanted.data, "train")
        with pytest.raises(Interrupted):
            run_stages(
                list(plans.values()), RunContext(wanted, images, Notes(), StopRequest()), only=name
            )
        return before, found.pop()

    return start


def test_a_resumed_stage_starts_from_all_of_the_one_before(started):
    """Raw weights and optimisers of every network that both train; what is new is fresh."""
    before, state = started(settings(), "adm")
    dm = before["dm"]
    for name in ("student", "fake"):
        assert differences(state.params[name], dm.params[name]) == []
        assert differences(state.opt_state[name], dm.opt_state[name]) == []
    assert differences(state.ema, dm.ema) == []
    assert int(state.step) == 0
    # Every student has a discriminator of its own, whose optimiser has seen nothing.
    np.testing.assert_array_equal(updates(state, "discriminator"), 0)
    first, second = (take(state.params["discriminator"], k) for k in range(2))
    assert differences(first, second)
    moments = jax.tree.leaves(state.opt_state["discriminator"])
    assert all(np.all(np.asarray(x) == 0) for x in moments)


def test_a_stage_that_does_not_resume_starts_from_averages_with_fresh_optimisers(started):
    wanted = settings()
    alone = dataclasses.replace(
        wanted.stages["dm"], pairs="", objective={"name": "dmd", "regression_weight": 0.0}
    )
    stages = {"tsm": wanted.stages["tsm"], "dm": alone}
    before, state = started(settings(**stages), "dm")
    for k in range(2):
        assert differences(take(state.params["student"], k), before["tsm"].ema["0.9"]) == []
        assert differences(take(state.params["fake"], k), before["teacher"].ema["0.9"]) == []
    for name in ("student", "fake"):
        np.testing.assert_array_equal(updates(state, name), 0)


def test_a_method_without_a_fake_denoiser_starts_without_one(started):
    ladd = stage("ladd", objective={"features": ("last",)}, init="teacher", steps=3)
    before, state = started(settings(ladd=ladd), "ladd")
    assert differences(state.params["student"], before["teacher"].ema["0.9"]) == []
    assert state.params.keys() == {"student", "discriminator"}


def test_many_students_go_on_from_one(started, tmp_path):
    wanted = settings()
    plain = {"name": "dmd", "regression_weight": 0.0}
    one = dataclasses.replace(
        wanted.stages["dm"], objective=plain, pairs="", init="fresh", students=StudentsSettings()
    )
    many = dataclasses.replace(one, resume="one", students=K2)
    before, state = started(settings(one=one, many=many), "many")
    for k in range(2):
        for name in ("student", "fake"):
            mine = take(state.params[name], k), take(state.opt_state[name], k)
            theirs = before["one"].params[name], before["one"].opt_state[name]
            assert differences(mine, theirs) == []
        assert differences(take(state.ema, k), before["one"].ema) == []


def test_averages_of_rates_that_the_stage_does_not_keep_are_left(tmp_path):
    wanted = settings()
    stages = {n: s for n, s in wanted.stages.items() if n != "teacher"}
    stages["adm"] = dataclasses.replace(stages["adm"], ema=(0.5, 0.9))
    stages["dm"] = dataclasses.replace(stages["dm"], ema=(0.9, 0.7))
    plans = plans_of(settings(**stages), tmp_path / "run")
    state = pretend(plans["dm"], 0)
    found = resumed(plans["adm"], plans["dm"])
    assert found.ema.keys() == {"0.9"}
    assert differences(found.ema["0.9"], state.ema["0.9"]) == []


# --------------------------------------------------------------------------------------- turns


def trained(folder, plan_name, wanted, log_every=10):
    """One stage of a run whose other stages are complete; its plan."""
    training = dataclasses.replace(wanted.training, log_every=log_every, checkpoint_every=100)
    wanted = dataclasses.replace(wanted, training=training)
    plans, notes = plans_of(wanted, folder / "run"), Notes()
    if plans["teacher"].manifest() is None:
        pretend(plans["teacher"], 0)
    images = data.load(wanted.data, "train")
    run_stages(
        list(plans.values()), RunContext(wanted, images, notes, StopRequest()), only=plan_name
    )
    return plans[plan_name]


def turns(alternate):
    objective = {"gan_weight": 0.0, "student_every": 5, "alternate": alternate}
    return settings(turns=stage("dmd2", objective=objective, init="teacher", steps=10))


@pytest.mark.parametrize(("alternate", "fake"), [(False, 10), (True, 8)])
def test_the_student_learns_at_every_fifth_step(tmp_path, alternate, fake):
    """In turn, the fake denoiser pauses there."""
    plan = trained(tmp_path, "turns", turns(alternate))
    state = saved_state(plan, 10)
    assert int(updates(state, "student")) == 2
    assert int(updates(state, "fake")) == fake
    if alternate:
        return
    # A mean over the steps at which the update ran, and not over the window.
    (mean,) = rows(plan)
    every = rows(trained(tmp_path / "every", "turns", turns(alternate), log_every=1))
    seen = {name: [row[name] for row in every if name in row] for name in mean}
    assert [row["step"] for row in every if "loss" in row] == [1, 6]
    assert [row["step"] for row in every if "loss_fake" in row] == list(range(1, 11))
    for name in ("loss", "score", "grad_norm", "diversity", "std_ratio", "loss_fake"):
        assert len(set(seen[name])) > 1
        np.testing.assert_allclose(mean[name], np.mean(seen[name]), rtol=1e-5)


# -------------------------------------------------------------------------------- fatal alarms


def test_a_stage_names_the_student_that_it_stops_for(tmp_path):
    """A learning rate of 1 blows the images of one of two students up; no number overflows."""
    swept = stage(
        "dmd",
        objective={"regression_weight": 0.0},
        init="teacher",
        steps=20,
        students=StudentsSettings(count=2, sweep={"learning_rate": (1e-4, 1.0)}),
    )
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path, "swept", settings(swept=swept), log_every=2)
    text = str(caught.value)
    for word in ("'swept', step", "student 1 (learning_rate=1)", "for 6 steps"):
        assert word in text
