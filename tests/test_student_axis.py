"""Many students in one step: every mapping learns what separate trainings learn."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from stacks import feed, processes, separate, settings, together

from ddistill.errors import ConfigError
from ddistill.mapping import MAPPINGS, lift, resolve
from ddistill.schedules import cosine
from ddistill.students import stack, take
from ddistill.training.compiled import Chunk
from ddistill.training.state import STATE_AXES, create_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs

EVERY_MAPPING = [m for m in MAPPINGS if m != "auto"]


def assert_same(stacked, alone, count, **tolerance):
    state, metrics = stacked
    for k in range(count):
        own, found = alone[k]
        assert int(state.step) == int(own.step)
        for part in ("params", "opt_state", "ema"):
            chex.assert_trees_all_close(
                jax.device_get(take(getattr(state, part), k)),
                jax.device_get(getattr(own, part)),
                **tolerance,
            )
        for name, value in found.items():
            np.testing.assert_allclose(metrics[name][-1, k], value[-1], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def alone():
    """`separate` of three O2MKD students on so many devices, trained once."""
    return functools.cache(lambda devices: separate(settings(devices), 3))


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("mapping", EVERY_MAPPING)
def test_students_learn_as_if_each_were_alone(mapping, devices, alone):
    found = together(settings(devices), 3, mapping)
    assert_same(found, alone(devices), 3, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mapping", ["vmap"])
def test_every_objective_can_be_given_ranges(mapping):
    s = settings(name="sfddm", dropout=0.2)
    assert_same(together(s, 2, mapping), separate(s, 2), 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mapping", ["loop"])
def test_scanned_steps_are_the_same_steps(mapping):
    s = settings()
    single, _ = together(s, 3, mapping, steps=4)
    scanned, metrics = together(s, 3, mapping, steps=4, scanned=4)
    assert metrics["loss"].shape == (4, 3)
    chex.assert_trees_all_close(single, scanned, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mapping", ["vmap", "loop"])
def test_streamed_batches_are_the_resident_ones(mapping):
    s = settings()
    resident, _ = together(s, 3, mapping)
    streamed, _ = together(s, 3, mapping, resident=False)
    chex.assert_trees_all_close(resident, streamed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mapping", ["unroll", "map", "loop", "shard"])
def test_one_student_is_the_plain_objective_bit_for_bit(mapping):
    s = settings()
    (state, metrics), [(own, found)] = together(s, 1, mapping), separate(s, 1)
    for part in ("params", "opt_state", "ema"):
        chex.assert_trees_all_equal(take(getattr(state, part), 0), getattr(own, part))
    np.testing.assert_array_equal(metrics["loss"][:, 0], found["loss"])


@pytest.mark.parametrize("mapping", ["vmap", "loop", "shard"])
def test_a_disturbed_student_changes_no_other(mapping):
    s = settings()
    params = [tiny.tiny_params(k) for k in range(3)]
    before, _ = together(s, 3, mapping, params=params)
    params[1] = jax.tree.map(lambda x: x + 0.5, params[1])
    after, _ = together(s, 3, mapping, params=params)
    for k in range(3):
        a, b = (jax.device_get(take(x.params, k)) for x in (before, after))
        same = jax.tree.all(jax.tree.map(np.array_equal, a, b))
        assert same == (k != 1)


@pytest.mark.parametrize("mapping", ["vmap", "loop"])
def test_a_student_that_diverges_is_frozen_and_the_others_go_on(mapping):
    s = settings(freeze=True)
    params = [tiny.tiny_params(k) for k in range(3)]
    healthy, _ = together(s, 3, mapping, params=params)
    params[1] = jax.tree.map(lambda x: x * jnp.nan, params[1])
    found, metrics = together(s, 3, mapping, params=params)
    np.testing.assert_array_equal(found.diverged, [0, 1, 0])
    np.testing.assert_array_equal(metrics["diverged"][-1], [0, 1, 0])
    assert int(found.step) == 3
    chex.assert_trees_all_equal(take(found.params, 1)["student"], params[1])
    for k in (0, 2):
        chex.assert_trees_all_equal(take(found.params, k), take(healthy.params, k))


def test_a_frozen_student_keeps_its_last_finite_weights():
    """An update that overflows is not kept, and a student that was frozen stays so."""
    s = settings(freeze=True)
    state = create_state({"student": stack([tiny.tiny_params(0)])}, s.optimizers, (), students=1)
    images, labels, batch_indices, keys, _ = feed(1, 3)
    inputs = StepInputs(tiny.tiny_denoiser(9), jax.tree.map(lambda x: x[None], processes(1)[0]))
    layout = dataclasses.replace(s.layout, students=1, mapping="unroll")
    chunk = Chunk(make_step(s), 1, True, layout)
    kept = jax.tree.map(jnp.copy, state.params)
    for i, rate in enumerate([np.inf, 0.01, 0.01]):
        rates = {"student": np.full((1, 1), rate, np.float32)}
        state, _ = chunk(state, inputs, images, labels, batch_indices[i : i + 1], keys, rates)
    np.testing.assert_array_equal(state.diverged, [1])
    chex.assert_trees_all_equal(state.params, kept)


def test_health_is_told_for_every_student():
    s = settings()
    _, metrics = together(s, 3, "vmap")
    for name in ("loss", "grad_norm", "ema_distance", "diverged"):
        assert metrics[name].shape == (1, 3)
    assert np.all(np.asarray(metrics["ema_distance"]) > 0)


# ------------------------------------------------------------------------------- any function


@pytest.mark.parametrize("mapping", EVERY_MAPPING)
def test_lift_maps_any_function_of_a_student(mapping):
    params = stack([tiny.tiny_params(k) for k in range(3)])
    z = jax.random.normal(jax.random.key(0), (2, *tiny.IMAGE))
    levels = cosine(8)

    def sample(params, noise, index):
        level = levels.at(index)
        return tiny.tiny_denoiser().replace(params=params)(noise, level).x0, jnp.sum(noise)

    index = jnp.array([1, 4, 8])
    images, total = lift(sample, 3, mapping, (0, None, 0), (0, None))(params, z, index)
    assert total.shape == ()
    for k in range(3):
        expected, _ = sample(take(params, k), z, index[k])
        np.testing.assert_allclose(images[k], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mapping", EVERY_MAPPING)
def test_first_weights_do_not_depend_on_the_mapping(mapping):
    keys = jax.random.split(jax.random.key(3), 3)

    def init(key):
        inputs = jnp.zeros((1, *tiny.IMAGE)), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
        return tiny.TinyNet().init(key, *inputs)["params"]

    found = lift(init, 3, mapping)(keys)
    chex.assert_trees_all_close(found, stack([init(k) for k in keys]), rtol=1e-5, atol=1e-6)


def test_loop_traces_one_step_for_all_students_and_steps():
    s = settings()
    chex.clear_trace_counter()
    together(s, 3, "loop", step=chex.assert_max_traces(make_step(s), n=1))


def test_unknown_mappings_are_refused():
    with pytest.raises(ConfigError, match="students.mapping='vmapp'.*Did you mean 'vmap'"):
        resolve("vmapp")
    assert resolve("auto") in EVERY_MAPPING


def test_state_axes_cover_every_field_but_the_step():
    assert STATE_AXES.step is None
    state = create_state(
        {"student": stack([tiny.tiny_params(0)] * 2)},
        {"student": optax.sgd(1.0)},
        (0.5,),
        students=2,
    )
    rest = state.replace(step=None)
    assert all(x.shape[0] == 2 for x in jax.tree.leaves(rest))
