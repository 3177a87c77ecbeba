"""The train step: accumulation, averages, randomness and compilation."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill.errors import ConfigError
from ddistill.objectives import make_objective
from ddistill.objectives.base import Objective
from ddistill.objectives.parts import StageFacts, Update
from ddistill.optimizers import (
    OPTIMIZERS,
    check_optimizer,
    learning_rate,
    learning_rates,
    make_optimizer,
)
from ddistill.runtime.rng import stream_key
from ddistill.runtime.sharding import Layout, data_mesh, replicate
from ddistill.settings import OptimizerSettings
from ddistill.training.batches import spans
from ddistill.training.compiled import Chunk
from ddistill.training.state import create_state, update_ema
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings, make_batch


def setup(name="sfddm", **changes):
    tables = tiny.tables()
    objective = make_objective({"name": name, **({"substeps": 2} if name == "sfddm" else {})})
    optimizer = {"student": optax.adam(1e-2)}
    s = StepSettings(
        objective=objective.prepare(StageFacts(np.asarray(tables.grid)[:5])),
        modules={"student": tiny.TinyNet()},
        prediction="v",
        optimizers=optimizer,
        **changes,
    )
    state = create_state({"student": tiny.tiny_params(1)}, optimizer, (0.5, 0.99))
    return s, state, StepInputs(tiny.tiny_denoiser(0), tables)


def data(count=8):
    batch = tiny.batch(count)
    return batch.image, batch.label


@functools.cache
def after_a_step(**changes):
    s, state, inputs = setup(**changes)
    return jax.jit(make_step(s))(state, inputs, *data(), stream_key(0, "train"))


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing_but_rounding(accumulate, unroll):
    whole, metrics = after_a_step()
    parts, metrics_parts = after_a_step(accumulate=accumulate, unroll=unroll)
    chex.assert_trees_all_close(whole, parts, rtol=2e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, metrics_parts, rtol=1e-4)


def test_steps_compile_once_and_scanned_steps_equal_single_ones():
    s, state, inputs = setup()
    images, labels = data(20)
    layout = Layout(data_mesh(4, jax.devices()[:1]))
    key = stream_key(0, "train")
    batch_indices = np.arange(24).reshape(6, 4) % 20
    counted = chex.assert_max_traces(make_step(s), n=1)
    single = Chunk(counted, 1, resident=True, layout=layout)
    state = replicate(layout.mesh, state)
    one = jax.tree.map(jnp.copy, state)
    for i in range(6):
        one, _ = single(one, inputs, images, labels, batch_indices[i : i + 1], key)
    chex.clear_trace_counter()
    scanned = Chunk(make_step(s), 6, resident=True, layout=layout)
    many, metrics = scanned(state, inputs, images, labels, batch_indices, key)
    chex.assert_trees_all_close(one, many, rtol=1e-4, atol=1e-6)
    assert metrics["loss"].shape == (6,)
    assert int(many.step) == 6


def test_streamed_batches_equal_resident_ones():
    s, state, inputs = setup(flip=True)
    images, labels = data(20)
    batch_indices, key = np.arange(8).reshape(2, 4), stream_key(3, "x")
    layout = Layout(data_mesh(4, jax.devices()[:1]))
    other = jax.tree.map(jnp.copy, state)
    resident, streamed = (Chunk(make_step(s), 2, r, layout) for r in (True, False))
    a, _ = resident(state, inputs, images, labels, batch_indices, key)
    b, _ = streamed(other, inputs, images[batch_indices], labels, batch_indices, key)
    chex.assert_trees_all_close(a, b, rtol=1e-6)


def test_uint8_images_are_normalised():
    s, state, inputs = setup("denoising")
    images, labels = data()
    pixels = jnp.round((images + 1) * 127.5).astype(jnp.uint8)
    key = stream_key(0, "train")
    step = jax.jit(make_step(s))
    _, a = step(state, inputs, pixels, labels, key)
    _, b = step(state, inputs, pixels / 127.5 - 1, labels, key)
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_every_step_and_stream_has_its_own_randomness():
    s, state, inputs = setup("denoising")
    step = jax.jit(make_step(s))
    first = step(state, inputs, *data(), stream_key(0, "train"))[1]["loss"]
    same = step(state, inputs, *data(), stream_key(0, "train"))[1]["loss"]
    later = step(state.replace(step=jnp.int32(1)), inputs, *data(), stream_key(0, "train"))
    other = step(state, inputs, *data(), stream_key(0, "teacher/train"))[1]["loss"]
    assert float(first) == float(same)
    assert len({float(first), float(later[1]["loss"]), float(other)}) == 3


class TwoPlayers(Objective):
    """A second network that is updated at every step, and the student at every third."""

    @property
    def updates(self):
        return (
            Update("student", lambda n, b, p: self.value(n["student"], b, p), every=3),
            Update("critic", lambda n, b, p: self.value(n["critic"], b, p)),
        )

    def value(self, network, batch, tables):
        level = tables.student.at(jnp.ones_like(batch.label))
        return jnp.mean(network(batch.image, level).x0 ** 2, axis=(1, 2, 3)), {}


def game(objective, names, optimizer):
    """A step of several networks, their state, and what the step reads."""
    optimizers = {name: optimizer for name in names}
    modules = {name: tiny.TinyNet() for name in names}
    s = StepSettings(objective, modules, "v", optimizers)
    params = {name: tiny.tiny_params(i) for i, name in enumerate(names, 1)}
    return s, create_state(params, optimizers, ()), StepInputs(None, tiny.tables())


def test_updates_run_at_their_own_pace_and_touch_their_own_network():
    s, state, inputs = game(TwoPlayers(), ("student", "critic"), optax.sgd(0.1))
    step = jax.jit(make_step(s))
    changed = {"student": [], "critic": []}
    for _ in range(7):
        new, metrics = step(state, inputs, *data(), stream_key(0, "t"))
        for name in changed:
            same = jax.tree.map(lambda a, b: bool((a == b).all()), new.params, state.params)
            changed[name].append(not all(jax.tree.leaves(same[name])))
        state = new
    assert changed["student"] == [True, False, False, True, False, False, True]
    assert changed["critic"] == [True] * 7
    assert {"loss", "grad_norm", "loss_critic", "grad_norm_critic"} <= set(metrics)


class Together(TwoPlayers):
    """One update of two networks, and a third that is read and not trained."""

    @property
    def updates(self):
        return (Update(("critic", "judge"), self.sum_of_values),)

    def sum_of_values(self, networks, batch, tables):
        names = ("student", "critic", "judge")
        values = [self.value(networks[n], batch, tables)[0] for n in names]
        return values[0] + values[1] * values[2], {}


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "unroll": False}])
def test_one_loss_trains_several_networks_each_by_its_own_optimiser(changes):
    """Against gradients taken by hand; clipping bounds each network's own."""
    rule = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    s, state, inputs = game(Together(), ("student", "critic", "judge"), rule)
    s = dataclasses.replace(s, **changes)
    key, rates = stream_key(0, "t"), {"critic": jnp.float32(0.5), "judge": jnp.float32(0.25)}
    new, metrics = jax.jit(make_step(s))(state, inputs, *data(), key, rates)
    assert set(metrics) == {"loss_critic", "grad_norm_critic"}
    chex.assert_trees_all_equal(new.params["student"], state.params["student"])
    batch = make_batch(s, *data(), jax.random.fold_in(key, 0))

    def loss(params):
        networks = {n: tiny.tiny_denoiser().replace(params=p) for n, p in params.items()}
        return jnp.mean(s.objective.sum_of_values(networks, batch, inputs.tables)[0])

    value, grads = jax.value_and_grad(loss)(state.params)
    wanted = {name: grads[name] for name in ("critic", "judge")}
    np.testing.assert_allclose(metrics["loss_critic"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm_critic"], optax.tree.norm(wanted), rtol=1e-4)
    for name, rate in rates.items():
        moved = jax.tree.map(jnp.subtract, state.params[name], new.params[name])
        np.testing.assert_allclose(optax.tree.norm(moved), 1e-3 * rate, rtol=1e-3)
        along = optax.tree.scale(1e-3 * rate / optax.tree.norm(grads[name]), grads[name])
        chex.assert_trees_all_close(moved, along, rtol=1e-2, atol=1e-7)


@given(rate=st.floats(0, 0.9999), steps=st.integers(1, 6), warmup=st.booleans())
@settings(max_examples=25, deadline=None)
def test_average_is_the_textbook_recursion(rate, steps, warmup):
    values = np.random.default_rng(steps).normal(size=steps)
    ema, expected = {str(rate): jnp.float32(0.5)}, 0.5
    for s, value in enumerate(values):
        ema = update_ema(ema, jnp.float32(value), jnp.int32(s), warmup)
        now = min(rate, (1 + s) / (10 + s)) if warmup else rate
        expected = now * expected + (1 - now) * value
    np.testing.assert_allclose(float(ema[str(rate)]), expected, rtol=1e-4, atol=1e-5)


def test_state_shares_no_buffer_with_the_teacher_it_starts_from():
    params = tiny.tiny_params(0)
    state = create_state({"student": params}, {"student": optax.adam(1e-3)}, (0.9,))
    trees = (params, state.params["student"], state.ema["0.9"])
    pointers = [x.unsafe_buffer_pointer() for tree in trees for x in jax.tree.leaves(tree)]
    assert len(set(pointers)) == len(pointers)


@given(
    start=st.integers(0, 30),
    length=st.integers(0, 50),
    size=st.integers(1, 9),
    border=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_spans_tile_the_steps_and_stop_at_borders(start, length, size, border):
    cuts = list(spans(start, start + length, size, (border, 7)))
    covered = [s for begin, count in cuts for s in range(begin, begin + count)]
    assert covered == list(range(start, start + length))
    for begin, count in cuts:
        assert 1 <= count <= size
        assert all((begin + i) % border and (begin + i) % 7 for i in range(1, count))


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 60: 1.0, 110: 1.0}),
        ("linear", {0: 0.0, 10: 1.0, 60: 0.55, 110: 0.1}),
        ("cosine", {0: 0.0, 10: 1.0, 60: 0.55, 110: 0.1}),
        ("step", {10: 1.0, 54: 1.0, 56: 0.1, 81: 0.1, 84: 0.01}),
    ],
)
def test_learning_rates(schedule, expected):
    o = OptimizerSettings(learning_rate=1.0, schedule=schedule, warmup=10, final_scale=0.1)
    rate = learning_rate(o, 110)
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"name": "adm"}, "optimizer.name='adm'.*Did you mean 'adam'"),
        ({"schedule": "cosin"}, "optimizer.schedule='cosin'.*Did you mean 'cosine'"),
        ({"warmup": 200}, "optimizer.warmup=200.*100 steps"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate=0.0"),
        ({"clip": -1.0}, "optimizer.clip=-1.0"),
        ({"weight_decay": 0.1}, "no effect on 'adam'"),
        ({"schedule": "step", "milestones": (0.5, 1.5)}, "milestones"),
    ],
)
def test_impossible_optimizers_are_refused(changes, text):
    with pytest.raises(ConfigError, match=text):
        check_optimizer(OptimizerSettings(**changes), 100)


def optax_itself(o, steps):
    rate = learning_rate(o, steps)
    if o.name == "adamw":
        return optax.adamw(rate, weight_decay=o.weight_decay)
    if o.name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(o.weight_decay), optax.sgd(rate, momentum=o.momentum)
        )
    return {"adam": optax.adam, "radam": optax.radam}[o.name](rate)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_rates_given_from_outside_train_as_rates_inside(name, schedule):
    decay = 0.1 if name in ("adamw", "sgd") else 0.0
    o = OptimizerSettings(name=name, schedule=schedule, warmup=3, weight_decay=decay)
    rates = learning_rates(o, 12)
    assert rates.shape == (12,)
    assert rates.dtype == np.float32
    ours, theirs = make_optimizer(o), optax_itself(o, 12)
    a = b = {"w": jnp.linspace(-1.0, 1.0, 5)}
    state_a, state_b = ours.init(a), theirs.init(b)
    for rate in rates:
        update, state_a = ours.update(jax.tree.map(jnp.sin, a), state_a, a)
        a = optax.apply_updates(a, jax.tree.map(lambda x, rate=rate: rate * x, update))
        update, state_b = theirs.update(jax.tree.map(jnp.sin, b), state_b, b)
        b = optax.apply_updates(b, update)
    chex.assert_trees_all_close(a, b, rtol=1e-6)


def test_clipping_bounds_the_update():
    clipped = make_optimizer(OptimizerSettings(name="sgd", momentum=0.0, clip=1.0))
    params = {"w": jnp.zeros(4)}
    update, _ = clipped.update({"w": jnp.full(4, 100.0)}, clipped.init(params), params)
    assert float(optax.tree.norm(update)) == pytest.approx(1.0, rel=1e-5)
