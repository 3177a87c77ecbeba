"""What an objective may ask of the train step, each with the smallest method that asks for it."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from gaussian import GaussianDenoiser
from runs import STEPS as STAGE_STEPS
from runs import LateStop, Notes, differences, one_stage, plans_of, saved_state

from ddistill import data
from ddistill.data.facts import DataFacts
from ddistill.diffusion import Prediction
from ddistill.errors import ConfigError
from ddistill.objectives import OBJECTIVES, Objective, Update, make_level_tables, make_objective
from ddistill.objectives.base import start_memory
from ddistill.objectives.parts import DENOISER, Auxiliary, LossAux, Memory, Requirements, StageFacts
from ddistill.objectives.states import State, rollout
from ddistill.planning.checks.levels import notes as notes_of
from ddistill.runtime.interrupt import Interrupted, StopRequest
from ddistill.runtime.rng import stream_key
from ddistill.schedules import cosine, make_grid
from ddistill.settings import StudentsSettings
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.state import create_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings, make_batch

STEPS = 5
QUEUE, PUSHED = 8, 3


@dataclass(frozen=True)
class FollowsItsAverage(Objective):
    """The student's own average is its target network, as in consistency models."""

    rate: float = 0.5

    @property
    def auxiliaries(self):
        return {"target": Auxiliary(DENOISER, start="average", rate=self.rate)}

    @property
    def updates(self):
        return (Update("student", self.value),)

    def value(self, networks, batch, tables):
        level = tables.student.at(jnp.ones_like(batch.label))
        ours = networks["student"](batch.image, level).x0
        theirs = networks["target"](batch.image, level).x0
        data = jnp.mean(jnp.square(ours - 0.3), axis=(1, 2, 3))
        apart = jnp.mean(jnp.square(ours - theirs))
        return data + jnp.mean(jnp.square(ours - theirs), axis=(1, 2, 3)), {"apart": apart}


@dataclass(frozen=True)
class KeepsAQueue(Objective):
    """A first-in-first-out queue of the newest images' means, and where it is written next."""

    @property
    def memory(self):
        start = lambda key, shape, dtype: jax.random.normal(key, shape, dtype)  # noqa: E731
        return {"queue": Memory((QUEUE,), start=start), "written": Memory((), "int32")}

    @property
    def updates(self):
        return (Update("student", self.value),)

    def value(self, networks, batch, tables):
        level = tables.student.at(jnp.ones_like(batch.label))
        values = jnp.mean(jnp.square(networks["student"](batch.image, level).x0), axis=(1, 2, 3))
        written = batch.memory["written"]
        rows = (written + jnp.arange(PUSHED)) % QUEUE
        queue = batch.memory["queue"].at[rows].set(jnp.mean(batch.image, axis=(1, 2, 3))[:PUSHED])
        memory = {"queue": queue, "written": written + PUSHED}
        return values, {"queue_mean": jnp.mean(queue)}, LossAux(memory=memory)


@dataclass(frozen=True)
class LearnsFromNoise(Objective):
    """No image enters its loss; its metric is the training progress."""

    @property
    def requires(self):
        return Requirements(images="")

    @property
    def updates(self):
        return (Update("student", self.value),)

    def value(self, networks, batch, tables):
        level = tables.student.at(jnp.full_like(batch.label, tables.count))
        noise = jax.vmap(lambda key: jax.random.normal(key, batch.image.shape[1:]))(
            batch.key("noise")
        )
        values = jnp.mean(jnp.square(networks["student"](noise, level).x0), axis=(1, 2, 3))
        return values, {"progress": tables.progress, "image": jnp.mean(jnp.abs(batch.image))}


def start(objective, **options):
    """The step, its state and its inputs for a tiny network."""
    module = tiny.TinyNet()
    s = StepSettings(
        objective=objective,
        modules={"student": module},
        prediction="v",
        optimizers={"student": optax.sgd(0.5)},
        image_shape=tiny.IMAGE,
        **options,
    )
    state = create_state({"student": tiny.tiny_params(1, module)}, s.optimizers, ())
    memory = start_memory(objective, jax.random.key(3))
    targets = {
        name: jax.tree.map(jnp.copy, state.params["student"])
        for name, own in objective.auxiliaries.items()
        if own.rate
    }
    tables = dataclasses.replace(tiny.tables(), steps=jnp.int32(STEPS))
    inputs = StepInputs(None, tables)
    return jax.jit(make_step(s)), dataclasses.replace(state, memory=memory, targets=targets), inputs


def run(objective, images=True, **options):
    """States before the first step and after each, and the metrics of the steps."""
    step, state, inputs = start(objective, **options)
    batch = tiny.batch(6)
    states, rows = [state], []
    for _ in range(STEPS):
        state, metrics = step(
            state, inputs, batch.image if images else None, batch.label, stream_key(0, "train")
        )
        states.append(state)
        rows.append({name: float(value) for name, value in metrics.items()})
    return states, rows


def test_a_target_network_is_the_moving_average_of_the_student():
    states, rows = run(FollowsItsAverage(rate=0.75))
    average = states[0].params["student"]
    for state in states[1:]:
        average = jax.tree.map(
            lambda old, new: 0.75 * old + 0.25 * new, average, state.params["student"]
        )
        for found, wanted in zip(
            jax.tree.leaves(state.targets["target"]), jax.tree.leaves(average), strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert rows[0]["apart"] == 0.0
    assert rows[-1]["apart"] > 0.0


def test_an_average_of_rate_0_is_the_student_as_a_constant():
    states, rows = run(FollowsItsAverage(rate=0.0))
    assert states[-1].targets == {}, "no copy is kept"
    assert all(row["apart"] == 0.0 for row in rows)
    assert any(row["grad_norm"] > 0.0 for row in rows)


def test_the_rate_of_an_average_may_follow_the_progress():
    objective = FollowsItsAverage(rate=lambda progress: progress)
    states, _ = run(objective)
    first = states[1].targets["target"], states[1].params["student"]
    for found, wanted in zip(*map(jax.tree.leaves, first), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)  # rate 0 at step 0
    last = states[-1]
    assert any(
        np.max(np.abs(a - b)) > 1e-6
        for a, b in zip(
            jax.tree.leaves(last.targets["target"]), jax.tree.leaves(last.params["student"])
        )
    )


def test_memory_is_carried_from_step_to_step():
    states, rows = run(KeepsAQueue())
    queue = np.asarray(states[0].memory["queue"]).copy()
    assert np.std(queue) > 0, "it starts as `start` says"
    # The step draws the same images, in the order of the batch.
    means = np.asarray(jnp.mean(tiny.batch(6).image, axis=(1, 2, 3)))[:PUSHED]
    for i, state in enumerate(states[1:]):
        queue[(i * PUSHED + np.arange(PUSHED)) % QUEUE] = means
        np.testing.assert_allclose(state.memory["queue"], queue, rtol=1e-6)
        assert int(state.memory["written"]) == (i + 1) * PUSHED
        np.testing.assert_allclose(rows[i]["queue_mean"], queue.mean(), rtol=1e-5, atol=1e-6)


def test_losses_see_the_training_progress():
    _, rows = run(LearnsFromNoise())
    np.testing.assert_allclose([row["progress"] for row in rows], np.arange(STEPS) / STEPS)


def test_an_objective_of_noise_alone_is_given_no_images():
    states, rows = run(LearnsFromNoise(), images=False)
    assert all(row["image"] == 0.0 for row in rows)
    with_images, _ = run(LearnsFromNoise())
    for a, b in zip(
        jax.tree.leaves(states[-1].params), jax.tree.leaves(with_images[-1].params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_every_use_of_a_batchs_randomness_has_keys_of_its_own():
    batch = tiny.batch(4)
    names = ("level", "noise", "label_dropout", "dropout", "pairs", "rollout")
    drawn = {name: np.asarray(jax.random.key_data(batch.key(name))) for name in names}
    flat = np.stack(list(drawn.values())).reshape(-1, 2)
    assert len(np.unique(flat, axis=0)) == len(names) * 4
    np.testing.assert_array_equal(
        jax.random.key_data(batch.dropout_key), jax.random.key_data(batch.key("dropout")[0])
    )
    settings = StepSettings(Objective(), {}, "v", {}, image_shape=tiny.IMAGE)
    made = make_batch(settings, None, batch.label, jax.random.key(0))
    assert made.image.shape == (4, *tiny.IMAGE)


# ------------------------------------------------------------------------------ state samplers


def gaussian_states(count, name, std=0.7):
    """Rollout states of the exact denoiser of N(0, std^2), `count` images of one pixel a level."""
    schedule = cosine(64)
    tables = make_level_tables(schedule, make_grid(schedule, 16))
    index = jnp.tile(jnp.arange(1, 17), count)
    start = jax.random.normal(jax.random.key(0), (len(index), 1, 1, 1))
    start = start * jnp.maximum(1.0, tables.student.at(16).sigma)
    level = tables.student.at(index)
    state = State(start, index, level, level, None, Prediction(start, start))
    return tables, index, rollout(GaussianDenoiser(0.0, std), start, state, tables, name)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_rollout_states_of_an_exact_denoiser_have_nearly_the_forward_marginals(name):
    """DDIM in 16 steps is first order: its spread is below the exact one by a few per cent."""
    tables, index, z = gaussian_states(4000, name)
    top = z[index == 16]
    np.testing.assert_array_equal(
        np.asarray(top).ravel(),
        np.asarray(jax.random.normal(jax.random.key(0), (64000, 1, 1, 1))[index == 16]).ravel()
        * max(1.0, float(tables.student.at(16).sigma)),
    )
    # In closed form: every step scales z by one factor.
    levels = [tables.student.at(i) for i in range(17)]
    scale = max(1.0, float(levels[16].sigma))
    for i in range(16, 0, -1):
        here = levels[i]
        found = float(np.std(np.asarray(z[index == i])))
        np.testing.assert_allclose(found, scale, rtol=0.03)
        exact = np.sqrt((float(here.alpha) * 0.7) ** 2 + float(here.sigma) ** 2)
        np.testing.assert_allclose(scale, exact, rtol=0.12)
        there, variance = levels[i - 1], exact**2
        x0 = float(here.alpha) * 0.49 / variance
        eps = float(here.sigma) / variance
        scale *= float(there.alpha) * x0 + float(there.sigma) * eps


def test_rollout_states_carry_no_gradient():
    tables = tiny.tables()
    batch = tiny.batch(4)
    denoiser = tiny.tiny_denoiser(0)
    index = jnp.array([1, 2, 3, 4])
    level = tables.student.at(index)
    state = State(batch.image, index, level, level, None, Prediction(batch.image, batch.image))

    def total(params):
        network = denoiser.replace(params=params)
        return jnp.sum(rollout(network, batch.image, state, tables, "student"))

    gradient = jax.grad(total)(denoiser.params)
    assert all(float(jnp.max(jnp.abs(x))) == 0.0 for x in jax.tree.leaves(gradient))


def regression(**changes):
    return make_objective({"name": "o2mkd", **changes}).prepare(
        StageFacts(np.asarray(tiny.tables().grid)[:5])
    )


def loss_of(objective, seed=0):
    networks = {"student": tiny.tiny_denoiser(1), "teacher": tiny.tiny_denoiser(2)}
    return objective.regression_loss(networks, tiny.batch(6, seed), tiny.tables())[0]


def test_states_of_rollouts_change_the_loss_and_share_0_does_not():
    plain = loss_of(regression())
    np.testing.assert_array_equal(plain, loss_of(regression(student_states=0.0)))
    for name in ("teacher_states", "student_states"):
        mixed, whole = loss_of(regression(**{name: 0.5})), loss_of(regression(**{name: 1.0}))
        assert np.any(np.asarray(plain) != np.asarray(whole))
        same = (np.asarray(mixed) == np.asarray(plain)) | (np.asarray(mixed) == np.asarray(whole))
        assert same.all(), "each example's state is the one or the other"


def test_shares_of_rollouts_are_checked():
    with pytest.raises(
        ConfigError, match=r"teacher_states=0.7 and student_states=0.5 .* at most 1"
    ):
        regression(teacher_states=0.7, student_states=0.5)
    with pytest.raises(ConfigError, match="the distance 'task' compares with the data"):
        regression(task_weight=1.0, student_states=0.5)
    assert regression(teacher_states=0.5).requires.teacher
    assert "student_states" in regression().inert_hparams()
    assert "student_states" not in regression(student_states=0.5).inert_hparams()


def test_rollouts_are_counted_and_belong_to_no_image_of_the_data():
    grid = np.asarray(tiny.tables().grid)[:5]
    plain, mixed = regression(), regression(teacher_states=0.5)
    assert (plain.teacher_calls(), plain.teacher_calls(2)) == (1, 2)
    assert (mixed.teacher_calls(), mixed.teacher_calls(2)) == (1 + 3, 2 + 6)
    sfddm = {"name": "sfddm", "substeps": 2}
    assert [
        make_objective({**sfddm, "teacher_states": share}).prepare(StageFacts(grid)).teacher_calls()
        for share in (0.0, 0.1)
    ] == [3, 6]
    with pytest.raises(ConfigError, match="the distance 'data' compares with the data"):
        make_objective({"name": "denoising", "student_states": 0.2})
    assert regression(student_states=0.5).requires.all_levels
    assert not plain.requires.all_levels


# --------------------------------------------------------------------------------- whole stages


@dataclass(frozen=True)
class Everything(Objective):
    """Learns from noise alone against its own average, and counts its batches."""

    @property
    def requires(self):
        return Requirements(images="")

    @property
    def auxiliaries(self):
        return {"target": Auxiliary(DENOISER, start="average", rate=0.8)}

    @property
    def memory(self):
        start = lambda key, shape, dtype: jax.random.normal(key, shape, dtype)  # noqa: E731
        return {"means": Memory((3,), start=start), "written": Memory((), "int32")}

    @property
    def updates(self):
        return (Update("student", self.value),)

    def value(self, networks, batch, tables):
        level = tables.student.at(jnp.full_like(batch.label, tables.count))
        noise = jax.vmap(lambda key: jax.random.normal(key, batch.image.shape[1:]))(
            batch.key("noise")
        )
        ours = networks["student"](noise, level, batch.cond, key=batch.dropout_key).x0
        theirs = networks["target"](noise, level, batch.cond).x0
        values = jnp.mean(jnp.square(ours - 0.9 * theirs - 0.1), axis=(1, 2, 3))
        written = batch.memory["written"]
        means = batch.memory["means"].at[written % 3].set(jnp.mean(ours))
        aux = LossAux(memory={"means": jax.lax.stop_gradient(means), "written": written + 1})
        return values + 0.01 * jnp.mean(batch.memory["means"]), {"progress": tables.progress}, aux


@pytest.fixture
def everything(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "everything", Everything)


def of_everything(**changes):
    settings = one_stage()
    stage = dataclasses.replace(
        settings.stages["teacher"], objective={"name": "everything"}, accumulate=1, **changes
    )
    return dataclasses.replace(settings, stages={"teacher": stage})


def train(settings, workdir, looks=None):
    """The stage's plan, after a run that is stopped at the look `looks` and started again."""
    dataset = data.load(settings.data, "train")
    unread = dataclasses.replace(dataset, images=NeverRead(dataset.images))
    plan, notes = plans_of(settings, workdir)["teacher"], Notes()
    if looks is not None:
        with pytest.raises(Interrupted):
            run_stages([plan], RunContext(settings, unread, notes, LateStop(looks)))
    run_stages([plan], RunContext(settings, unread, notes, StopRequest()))
    assert (looks is not None) == any("going on from the checkpoint" in x for x in notes.said)
    return plan


class NeverRead:
    """Images that no batch may ask for."""

    def __init__(self, images):
        self.shape, self.dtype = images.shape, images.dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        raise AssertionError("images were read")


@pytest.mark.parametrize("count", [0, 2])
def test_a_stage_resumes_with_its_memory_and_average(everything, tmp_path, count):
    students = StudentsSettings(count=count, sweep={"seed": (1, 2)} if count else {})
    settings = of_everything(students=students)
    straight = train(settings, tmp_path / "straight")
    resumed = train(settings, tmp_path / "resumed", looks=25)
    ends = [saved_state(plan, STAGE_STEPS) for plan in (straight, resumed)]
    assert not differences(*ends)
    written = np.asarray(ends[0].memory["written"])
    np.testing.assert_array_equal(written, np.full((2,) if count else (), STAGE_STEPS))
    apart = jax.tree.map(
        lambda a, b: float(np.max(np.abs(a - b))),
        ends[0].targets["target"],
        ends[0].params["student"],
    )
    assert max(jax.tree.leaves(apart)) > 0


def test_micro_batches_and_memory_exclude_each_other(everything, tmp_path):
    with pytest.raises(ConfigError, match=r"accumulate=2, but the objective's memory \(means, wri"):
        plans_of(
            dataclasses.replace(
                of_everything(),
                stages={
                    "teacher": dataclasses.replace(of_everything().stages["teacher"], accumulate=2)
                },
            ),
            tmp_path / "run",
        )


def test_the_run_says_that_no_image_is_read(everything, tmp_path):
    settings = of_everything()
    plans = list(plans_of(settings, tmp_path / "run").values())
    facts = DataFacts.of(data.load(settings.data, "train"))
    assert "teacher: learns from noise alone; no image of the data is read." in notes_of(
        plans, settings, facts
    )
