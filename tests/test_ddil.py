"""DDIL: states of rollouts and of the replay buffer, in every method that draws noisy images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import struct
from gaussian import GaussianDenoiser
from pinned_losses import python_loop

from ddistill.diffusion import Prediction, expand, from_x0
from ddistill.errors import ConfigError
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.base import start_memory
from ddistill.objectives.parts import StageFacts
from ddistill.objectives.states import (
    REPLAY_CONDITION,
    REPLAY_INDEX,
    REPLAY_WRITTEN,
    REPLAY_Z,
    Rollouts,
    State,
    Walk,
    noised,
    replayed,
    rolled_out,
    rollout,
)
from ddistill.schedules import cosine, make_grid, uniform_grid
from ddistill.wrapped_denoiser import ClippedDenoiser, with_guidance

LEVELS = 4
GRID = np.asarray(tiny.tables(levels=LEVELS).grid)[: LEVELS + 1]
METHODS = {
    "progressive": {},
    "cd": {"solver": "ddim"},
    "sfddm": {"substeps": 2},
    "dmd": {"backward": "data", "regression_weight": 0.0},
}
MIXED = {"teacher_states": 0.2, "student_states": 0.5}


def prepared(name, steps=100, batch=6, conditional=False, **changes):
    objective = make_objective({"name": name, **METHODS.get(name, {}), **changes})
    sizes = {"steps": steps, "batch_size": batch, "image_shape": tiny.IMAGE}
    return objective.prepare(StageFacts(GRID, **sizes, conditional=conditional))


def networks():
    found = {"student": tiny.tiny_denoiser(1), "teacher": tiny.tiny_denoiser(2)}
    return {**found, "fake": tiny.tiny_denoiser(3), "target": tiny.tiny_denoiser(4)}


@pytest.fixture
def eager(monkeypatch):
    """Loops operation by operation: nothing is compiled for a single test."""
    monkeypatch.setattr(jax.lax, "fori_loop", python_loop)


def loss_of(objective, batch=None, tables=None):
    batch = tiny.batch(6) if batch is None else batch
    return objective.updates[0].loss(networks(), batch, tables or tiny.tables(levels=LEVELS))


def with_memory(batch, objective, **changes):
    return batch.replace(memory={**start_memory(objective, jax.random.key(0)), **changes})


# ------------------------------------------------------------------------- the walks themselves


@struct.dataclass
class PerfectStudent:
    """The student of N(m, c^2) with every image where the ODE ends, or every DDIM step on it."""

    tables: object
    mean: float = 0.3
    std: float = 0.7
    few: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, z, level, cond=None, *, key=None):
        def spread(alpha, sigma):
            return jnp.sqrt((alpha * self.std) ** 2 + sigma**2)

        a, s = expand(level.alpha, z), expand(level.sigma, z)
        offset = (z - a * self.mean) / spread(a, s)
        if not self.few:
            return from_x0(self.mean + self.std * offset, z, level)
        index = jnp.argmin(jnp.abs(self.tables.student.sigma[:, None] - level.sigma), axis=0)
        below = self.tables.student.at(index - 1)
        b, r = expand(below.alpha, z), expand(below.sigma, z)
        end = b * self.mean + spread(b, r) * offset
        return from_x0((end - r / s * z) / (b - a * r / s), z, level)


@pytest.mark.parametrize(("walk", "few"), [(0, True), (0, False), (3, False)])
def test_states_of_a_perfect_student_have_the_forward_marginals(walk, few):
    """Along all levels by DDIM; along all and along three of eight by noising images again."""
    schedule = cosine(32)
    tables = make_level_tables(schedule, make_grid(schedule, 8))
    index = jnp.repeat(jnp.arange(1, 9), 12_000)
    top = tables.student.at(8)
    noise = jax.random.normal(jax.random.key(0), (len(index), 1, 1, 1))
    # The start is the marginal of the noisiest level, which has a little of the data left.
    start = top.alpha * 0.3 + jnp.sqrt((top.alpha * 0.7) ** 2 + top.sigma**2) * noise
    level = tables.student.at(index)
    state = State(start, index, level, level, None, Prediction(start, noise))
    keys = None if few else jax.random.split(jax.random.key(1), len(index))
    student = PerfectStudent(tables, few=few)
    z = np.asarray(rollout(student, start, state, tables, "student", Walk(walk, keys)))[:, 0, 0, 0]
    for i in range(1, 9):
        here = tables.student.at(i)
        wanted = np.sqrt((float(here.alpha) * 0.7) ** 2 + float(here.sigma) ** 2)
        np.testing.assert_allclose(z[np.asarray(index) == i].std(), wanted, rtol=0.02)
        mean = z[np.asarray(index) == i].mean()
        np.testing.assert_allclose(mean, 0.3 * float(here.alpha), atol=0.03)


@pytest.mark.parametrize(("walk", "calls"), [(0, 3), (1, 1), (2, 2), (4, 3)])
def test_a_walk_of_fewer_steps_calls_the_student_as_often(walk, calls):
    """Levels 4 -> 2 -> 0 for two steps: level 3 is reached from 4, level 1 from 2."""
    tables, batch = tiny.tables(levels=LEVELS), tiny.batch(4)
    student, seen = tiny.tiny_denoiser(1), []

    def counted(z, level, cond=None, *, key=None):
        jax.debug.callback(lambda sigma: seen.append(float(sigma)), level.sigma[0], ordered=True)
        return student(z, level, cond)

    state = noised(batch, tables, jnp.asarray([1, 2, 3, 4]), None)
    found = rollout(counted, state.data.eps, state, tables, "student", Walk(walk))
    jax.effects_barrier()
    assert len(seen) == calls
    np.testing.assert_array_equal(found[3], state.data.eps[3])
    steps = {1: (4,), 2: (4, 2)}.get(walk, (4, 3, 2))
    sigma = np.asarray(tables.student.sigma)
    np.testing.assert_allclose(seen, sigma[list(steps)], rtol=1e-6)


def test_the_levels_of_a_walk_are_those_of_the_sampler():
    """Of 10 levels in 3 steps: 10, 7, 3, as `uniform_grid` has them."""
    tables, batch = tiny.tables(levels=10), tiny.batch(2)
    student, seen = tiny.tiny_denoiser(1), []

    def noted(z, level, cond=None, *, key=None):
        jax.debug.callback(lambda sigma: seen.append(float(sigma)), level.sigma[0], ordered=True)
        return student(z, level, cond)

    state = noised(batch, tables, jnp.asarray([1, 10]), None)
    rollout(noted, state.data.eps, state, tables, "student", Walk(3))
    jax.effects_barrier()
    rows = uniform_grid(10, 3)[:0:-1]
    assert rows.tolist() == [10, 7, 3]
    np.testing.assert_allclose(seen, np.asarray(tables.student.sigma)[rows], rtol=1e-6)


# --------------------------------------------------------------------- shares, warm-up, clipping


@pytest.mark.parametrize("name", METHODS)
def test_shares_of_zero_are_the_method_itself_and_others_are_not(name, eager):
    plain, mixed = loss_of(prepared(name))[0], loss_of(prepared(name, **MIXED))[0]
    apart = np.asarray(plain) != np.asarray(mixed)
    assert 0 < apart.sum() < 6, "some examples have other states"
    tables = tiny.tables(levels=LEVELS)
    warm = prepared(name, state_warmup=0.5, **MIXED)
    for step, wanted in ((0, plain), (1, mixed)):
        now = dataclasses.replace(tables, step=jnp.int32(step), steps=jnp.int32(2))
        np.testing.assert_array_equal(loss_of(warm, tables=now)[0], wanted)
    off = prepared(name)
    names = {"student_states", "state_warmup", "student_walk", "replay_batches", "replay_share"}
    assert {*names, "clip_x0"} <= set(off.inert_hparams())
    assert not {"student_states", "state_warmup"} & set(
        prepared(name, state_warmup=0.5, **MIXED).inert_hparams()
    )


def test_clipped_targets_stay_in_the_range_of_the_data():
    wide = GaussianDenoiser(0.0, 5.0)
    level = tiny.tables().student.at(jnp.asarray([1, 2, 3]))
    z = 4.0 * jnp.ones((3, 1, 1, 1))
    clipped = ClippedDenoiser(wide)
    found, free = clipped(z, level), wide(z, level)
    assert float(jnp.max(jnp.abs(free.x0))) > 1.5
    np.testing.assert_allclose(found.x0, jnp.clip(free.x0, -1, 1))
    np.testing.assert_allclose(
        expand(level.alpha, z) * found.x0 + expand(level.sigma, z) * found.eps, z, rtol=1e-5
    )
    np.testing.assert_allclose(clipped.with_features(("last",))(z, level)[0].x0, found.x0)
    # In a whole loss: a teacher beyond the range is learnt as if it ended there.
    tables, batch = tiny.tables(levels=LEVELS), tiny.batch(6)
    given = {"student": tiny.tiny_denoiser(1), "teacher": wide, "classifier": None}
    values, inside = (
        prepared("o2mkd", clip_x0=clip).regression_loss(
            {**given, "teacher": teacher}, batch, tables
        )[0]
        for clip, teacher in ((True, wide), (False, clipped))
    )
    np.testing.assert_array_equal(values, inside)
    guided = with_guidance(tiny.tiny_denoiser(2, module=tiny.TinyNet(num_classes=3)), 2.0, 3)
    assert ClippedDenoiser(guided).prediction == "v"


# ------------------------------------------------------------------------------------ the buffer


def test_the_buffer_is_first_in_first_out_and_its_states_keep_level_and_class():
    objective = prepared("progressive", student_states=1.0, replay_batches=2, conditional=True)
    shapes = {name: own.shape for name, own in objective.memory.items()}
    assert shapes == {
        REPLAY_Z: (12, *tiny.IMAGE),
        REPLAY_INDEX: (12,),
        REPLAY_CONDITION + "class": (12,),
        REPLAY_WRITTEN: (),
    }
    tables = tiny.tables(levels=LEVELS)
    memory = start_memory(objective, jax.random.key(0))
    history = []
    for seed in range(3):
        batch = tiny.batch(6, seed, conditional=True).replace(memory=memory)
        index = 1 + (jnp.arange(6) + seed) % 4
        made = noised(batch, tables, index, batch.cond)
        found = replayed(made, batch, tables, 0.5)
        states = [(np.asarray(made.z[i]), int(index[i]), int(batch.cond[i])) for i in range(6)]
        for i in range(6):
            own = (np.asarray(found.z[i]), int(found.index[i]), int(found.cond[i]))
            matches = [
                j
                for j, old in enumerate([states[i], *history[-12:]])
                if np.array_equal(own[0], old[0]) and own[1:] == old[1:]
            ]
            assert matches, "a state is the example's own or one of the buffer, as a whole"
            if seed == 0:
                assert matches == [0], "an empty buffer gives nothing"
        at = tables.student.at(found.index)
        np.testing.assert_array_equal(found.level.sigma, at.sigma)
        teacher = tables.teacher.at(tables.grid[found.index])
        np.testing.assert_array_equal(found.teacher_level.time, teacher.time)
        history += states
        memory = found.memory
    # The third batch lies where the first was.
    rows = np.asarray(memory[REPLAY_Z])
    for i, old in enumerate([*history[12:18], *history[6:12]]):
        np.testing.assert_array_equal(rows[i], old[0])
        assert int(memory[REPLAY_INDEX][i]) == old[1]
        assert int(memory[REPLAY_CONDITION + "class"][i]) == old[2]
    assert int(memory[REPLAY_WRITTEN]) == 3


@pytest.mark.parametrize("name", METHODS)
def test_losses_write_fresh_states_into_the_buffer_and_read_old_ones(name, eager):
    options = {"student_states": 1.0, "replay_batches": 1, "replay_share": 0.9}
    objective, tables = prepared(name, **options), tiny.tables(levels=LEVELS)
    assert prepared(name, student_states=1.0).memory == {}
    fresh = loss_of(objective, with_memory(tiny.batch(6), objective))
    np.testing.assert_array_equal(fresh[0], loss_of(prepared(name, student_states=1.0))[0])
    after = fresh[2].memory
    assert int(after[REPLAY_WRITTEN]) == 1
    assert set(np.asarray(after[REPLAY_INDEX])) <= set(range(1, LEVELS + 1))
    assert float(jnp.max(jnp.abs(after[REPLAY_Z]))) > 0
    old = 0.1 * jnp.ones((6, *tiny.IMAGE))
    filled = {REPLAY_Z: old, REPLAY_WRITTEN: jnp.int32(1), REPLAY_INDEX: jnp.full(6, 2)}
    changed = loss_of(objective, with_memory(tiny.batch(6), objective, **filled))
    same = np.asarray(changed[0]) == np.asarray(fresh[0])
    assert 0 <= same.sum() < 6
    # What is written is this step's, whatever was read.
    for key in (REPLAY_Z, REPLAY_INDEX):
        np.testing.assert_array_equal(changed[2].memory[key], after[key])
    assert np.isfinite(np.asarray(changed[0])).all()
    if name == "cd":
        batch = with_memory(tiny.batch(6), objective, **filled)
        state = objective.state(networks(), batch, tables)
        np.testing.assert_array_equal(state.below, state.index - 1)


def test_states_of_rollouts_and_buffers_carry_no_gradient():
    tables, batch = tiny.tables(levels=LEVELS), tiny.batch(4)
    objective = prepared("cd", batch=4, replay_batches=1, **MIXED)
    batch = with_memory(batch, objective, **{REPLAY_WRITTEN: jnp.int32(1)})
    state = noised(batch, tables, jnp.asarray([1, 2, 3, 4]), None)
    shares = Rollouts(0.2, 0.8, renoise=True, clip=True, walk=2, replay=0.5)

    def total(params):
        student = tiny.tiny_denoiser(1).replace(params=params)
        found = rolled_out(state, {**networks(), "student": student}, batch, tables, shares)
        return jnp.sum(found.z) + jnp.sum(found.memory[REPLAY_Z])

    found = jax.jit(jax.grad(total))(tiny.tiny_denoiser(1).params)
    assert all(float(jnp.max(jnp.abs(x))) == 0.0 for x in jax.tree.leaves(found))


# -------------------------------------------------------------------------------- needs and costs


@pytest.mark.parametrize("name", METHODS)
def test_rollouts_of_the_teacher_are_counted_and_those_of_the_student_are_not(name):
    plain, student = prepared(name), prepared(name, student_states=0.5)
    assert plain.teacher_calls() == student.teacher_calls()
    teacher = prepared(name, teacher_states=0.1)
    assert teacher.teacher_calls() == plain.teacher_calls() + LEVELS - 1
    assert teacher.teacher_calls(2) == plain.teacher_calls(2) + 2 * (LEVELS - 1)
    assert student.requires.all_levels


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("cd", {"student_walk": 2}, "student_walk=2 has no effect: objective.student_states is 0"),
        ("cd", {"state_warmup": 0.2}, "state_warmup=0.2 has no effect"),
        ("progressive", {"replay_batches": 2}, "replay_batches=2 has no effect"),
        ("progressive", {"replay_share": 0.2}, "replay_share=0.2 has no effect"),
        ("cd", {**MIXED, "student_walk": 9}, r"student_walk=9, .* has 4 levels. Allowed: 0 .all."),
        ("sfddm", {**MIXED, "state_warmup": 1.0}, "state_warmup=1.0 is a share of the training"),
        ("sfddm", {**MIXED, "replay_batches": 1, "replay_share": 1.0}, "replay_share=1.0 must be"),
        ("dmd", {**MIXED, "replay_batches": 101}, r"replay_batches=101, .* has 100 updates"),
        (
            "dmd2",
            {**MIXED, "backward": "data", "replay_batches": 21},
            r"replay_batches=21, but the stage has 20 updates of the student",
        ),
        ("dmd", {**MIXED, "backward": "rollout"}, "Set backward='data', or both to 0"),
        ("dmd", {"clip_x0": True}, "clip_x0=True has no effect"),
        ("denoising", {"clip_x0": True}, "clip_x0=True has no effect: all distances compare"),
        ("ct", {"student_states": 0.5}, "images of rollouts"),
    ],
)
def test_settings_that_cannot_work_are_refused(name, changes, words):
    with pytest.raises(ConfigError, match=words):
        prepared(name, **changes)
