"""Meshes of student, data and model axes: what is learnt, where it lies, what is refused."""

import dataclasses
import functools

import chex
import jax
import pytest
from runs import RECORD, Notes, one_stage, plans_of
from stacks import settings, together

from ddistill import data
from ddistill.errors import ConfigError
from ddistill.runtime.interrupt import StopRequest
from ddistill.runtime.sharding import AXES, Layout, cut_spec, make_mesh, plan_layout
from ddistill.settings import MeshSettings, StudentsSettings
from ddistill.training import compiled
from ddistill.training.checkpoints import Checkpoints
from ddistill.training.rounds import join_state, split_state
from ddistill.training.run_context import RunContext
from ddistill.training.run_stages import run_stages
from ddistill.training.state import state_shardings

MESHES = [(4, 1, 1), (2, 2, 1), (1, 4, 1), (1, 2, 2), (1, 1, 4), (2, 1, 2)]
# Low enough for the tiny network's kernels to be cut.
SMALLEST = 4


def on(mesh, **changes):
    """Step settings for a mesh of the first devices; `changes` to the layout."""
    s = settings()
    layout = Layout(make_mesh(mesh), smallest=SMALLEST, **changes)
    return dataclasses.replace(s, layout=layout)


@functools.cache
def on_one_device(count=4):
    """State and metrics after steps of some students."""
    state, metrics = together(settings(), count, "unroll")
    return jax.device_get(state), jax.device_get(metrics)


def assert_same(found, expected):
    (state, metrics), (other, wanted) = found, expected
    for part in ("params", "opt_state", "ema"):
        chex.assert_trees_all_close(
            jax.device_get(getattr(state, part)), getattr(other, part), rtol=1e-5, atol=1e-5
        )
    chex.assert_trees_all_close(jax.device_get(metrics), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_learns_what_one_device_learns(mesh):
    count = max(2, mesh[0])
    assert_same(together(on(mesh), count, "unroll"), on_one_device(count))


@pytest.mark.parametrize("mapping", ["vmap", "map", "loop"])
def test_students_of_one_device_can_be_mapped_in_any_way(mapping):
    assert_same(together(on((2, 2, 1)), 4, mapping), on_one_device())


@pytest.mark.parametrize("fsdp", ["students", "teacher"])
def test_teacher_and_students_are_cut_independently(fsdp):
    s = on((1, 2, 2), fsdp=fsdp)
    assert s.layout.cuts_students == (fsdp == "students")
    assert s.layout.cuts_teacher == (fsdp == "teacher")
    assert_same(together(s, 2, "unroll"), on_one_device(2))


def test_states_lie_where_the_layout_says():
    state, _ = together(on((2, 1, 2)), 4, "vmap")
    layout = dataclasses.replace(on((2, 1, 2)).layout, students=4)
    kernel = state.params["student"]["Dense_1"]["kernel"]
    assert kernel.shape == (4, 2, 6)
    # Four students on two groups of devices, the 6 output channels of each on two devices.
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 2, 3)
    for x, place in zip(jax.tree.leaves(state), jax.tree.leaves(state_shardings(state, layout))):
        assert x.sharding.is_equivalent_to(place, x.ndim)


@pytest.mark.parametrize(
    ("shape", "parts", "expected"),
    [
        ((3, 3, 16, 32), 2, (None, None, None, "model")),
        ((3, 3, 32, 16), 2, (None, None, "model")),
        ((3, 3, 32, 32), 4, (None, None, None, "model")),
        ((3, 3, 5, 7), 2, ()),
        ((8,), 2, ()),
        ((128, 64), 1, ()),
        ((64, 2), 4, ("model",)),
    ],
)
def test_the_largest_dimension_that_fits_is_cut(shape, parts, expected):
    assert cut_spec(shape, parts, smallest=64) == expected


@pytest.mark.parametrize("mesh", [(1, 2, 1), (2, 2, 1), (4, 1, 1)])
def test_turns_are_the_stack_taken_apart(mesh):
    """Also where students are spread: every device keeps those that it has."""
    layout = dataclasses.replace(on(mesh).layout, students=4, mapping="loop")
    state, _ = together(settings(), 4, "vmap", steps=1)
    placed = jax.device_put(jax.device_get(state), state_shardings(state, layout))
    rounds = split_state(layout, placed)
    assert len(rounds) == 4 // mesh[0]
    joined = join_state(layout, rounds)
    chex.assert_trees_all_equal(jax.device_get(joined), jax.device_get(state))
    for x, place in zip(jax.tree.leaves(joined), jax.tree.leaves(state_shardings(state, layout))):
        assert x.sharding.is_equivalent_to(place, x.ndim)
    given = {id(x) for x in jax.tree.leaves(rounds)}
    assert len(given) == len(jax.tree.leaves(rounds)), "turns share a buffer that a step donates"


def test_a_checkpoint_of_one_layout_is_restored_on_another(tmp_path):
    state, _ = together(on((2, 1, 2)), 4, "vmap")
    written = Checkpoints(tmp_path, keep=1)
    written.save(3, state, RECORD, 0.5)
    written.close()
    layouts = [dataclasses.replace(on(mesh).layout, students=4) for mesh in MESHES]
    for layout in (*layouts, None):
        places = state_shardings(state, layout)
        like = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places
        )
        read = Checkpoints(tmp_path, keep=1)
        found, _ = read.restore(like)
        read.close()
        chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(state))
        for x, place in zip(jax.tree.leaves(found), jax.tree.leaves(places)):
            assert x.sharding.is_equivalent_to(place, x.ndim)


# ------------------------------------------------------------------------------- from settings


@pytest.mark.parametrize(
    ("mesh", "students", "batch", "sizes"),
    [
        ({}, {}, 8, (1, 4, 1)),
        ({}, {}, 6, (1, 3, 1)),
        ({}, {"count": 4}, 8, (4, 1, 1)),
        ({}, {"count": 2}, 8, (2, 2, 1)),
        ({}, {"count": 2, "mapping": "shard"}, 7, (2, 1, 1)),
        ({}, {"count": 3, "mapping": "vmap"}, 8, (1, 4, 1)),
        ({"model": 2}, {"count": 4}, 8, (2, 1, 2)),
        ({"model": 2}, {}, 8, (1, 2, 2)),
        ({"student": 1, "data": 2}, {"count": 4}, 8, (1, 2, 1)),
        # One network takes what students would have, so that one mesh serves all stages of a run.
        ({"student": 4}, {}, 8, (1, 4, 1)),
        ({"student": 4}, {}, 6, (1, 3, 1)),
        ({"student": 2, "data": 2}, {}, 8, (1, 4, 1)),
        ({"student": 2, "data": 1, "model": 2}, {"count": 1}, 8, (1, 2, 2)),
    ],
)
def test_sizes_that_are_left_open_take_what_fits(mesh, students, batch, sizes):
    layout = plan_layout(MeshSettings(**mesh), StudentsSettings(**students), batch, "mesh")
    assert dict(layout.mesh.shape) == dict(zip(AXES, sizes))
    assert layout.mapping in ("vmap", "loop")


@pytest.mark.parametrize(
    ("mesh", "students", "words"),
    [
        ({"data": 8}, {}, ["data=8", "there are 4"]),
        ({"student": 2, "data": 2, "model": 2}, {"count": 2}, ["take 8 devices", "there are 4"]),
        ({"student": 3}, {"count": 4}, ["student=3", "4 students", "a divisor of 4"]),
        ({"data": 3}, {}, ["data=3", "batch of 8"]),
        ({"model": 3}, {}, ["model=3", "batch of 8"]),
        ({"model": 8}, {}, ["mesh: model=8 take 8 devices"]),
        ({"model": 0}, {}, ["model=0", "1 or more"]),
        ({"data": -1}, {}, ["data=-1", "0 (what fits)"]),
        ({"fsdp": "student"}, {}, ["fsdp='student'", "Did you mean 'students'?"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(mesh, students, words):
    with pytest.raises(ConfigError) as error:
        plan_layout(MeshSettings(**mesh), StudentsSettings(**students), 8, "config.training.mesh")
    assert str(error.value).startswith("config.training.mesh")
    for word in words:
        assert word in str(error.value)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [0, 3])
def test_steps_are_not_dispatched_far_ahead_of_the_devices(monkeypatch, tmp_path, count):
    """Of a stage that reads no metrics before its end, `AHEAD` programs at most are unfinished.

    Students of a loop are as many programs a step.
    """
    wanted = one_stage(log_every=1000, checkpoint_every=1000)
    many = StudentsSettings(count=count, sweep={"seed": tuple(range(count))}, mapping="loop")
    stage = dataclasses.replace(
        wanted.stages["teacher"],
        steps=60 // max(1, count),
        students=many if count else StudentsSettings(),
    )
    wanted = dataclasses.replace(wanted, stages={"teacher": stage})
    plans = list(plans_of(wanted, tmp_path / "run").values())
    dispatched, waited, wait = [], [], jax.block_until_ready
    jit = compiled.Chunk._jit

    def dispatch(self, state):
        dispatched.append(len(waited))
        return jit(self, state)

    def block(tree):
        waited.extend([tree] if isinstance(tree, dict) else [])
        return wait(tree)

    monkeypatch.setattr(compiled.Chunk, "_jit", dispatch)
    monkeypatch.setattr(jax, "block_until_ready", block)
    dataset = data.load(wanted.data, "train")
    run_stages(plans, RunContext(wanted, dataset, Notes(), StopRequest()))
    assert len(dispatched) == 60
    assert all(i - done <= compiled.AHEAD for i, done in enumerate(dispatched))
