"""RDD: identities of its relations, the queue, its gradients, its stage, wrong settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ddistill.errors import ConfigError
from ddistill.networks.classifier import FINAL_MAP
from ddistill.networks.weights import Weights
from ddistill.objectives import make_objective
from ddistill.objectives.base import start_memory
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.objectives.rdd import (
    BoundHead,
    enqueue,
    evenly_spaced,
    intra_divergence,
    memory_divergence,
    random_pixels,
    unit,
)

SMALL = {"queue_rows": 20, "rows_per_step": 8, "contrast_rows": 10}
MAP = (2, 2, 3)


def maps(seed, count=3, shape=MAP):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, *shape)), jnp.float32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_relations_of_equal_maps_are_zero():
    ours, rows = maps(0), unit(maps(1, 12))[:, 0, 0]
    np.testing.assert_allclose(intra_divergence(ours, ours), 0.0, atol=1e-6)
    np.testing.assert_allclose(memory_divergence(ours, ours, rows, 0.1), 0.0, atol=1e-6)
    # Relations are of directions: the length of a pixel's features does not enter.
    longer = ours * jnp.linspace(1.0, 5.0, 3)[:, None, None, None]
    np.testing.assert_allclose(intra_divergence(longer, ours), 0.0, atol=1e-6)


def test_intra_relations_are_those_of_all_ordered_pairs():
    """Against loops over pairs of images and pixels in float64."""
    ours, theirs = maps(0), maps(1)

    def directions(x):
        x = np.asarray(x, np.float64).reshape(3, 4, 3)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    a, b = directions(ours), directions(theirs)
    wanted = np.zeros(3)
    for i in range(3):
        for j in range(3):
            p, q = softmax(b[i] @ b[j].T), softmax(a[i] @ a[j].T)
            wanted[i] += np.sum(p * np.log(p / q)) / (3 * 4)
    found = intra_divergence(ours, theirs)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert np.min(wanted) > 0.01
    order = jnp.asarray([2, 0, 1])
    np.testing.assert_allclose(
        intra_divergence(ours[order], theirs[order]), np.asarray(found)[[2, 0, 1]], rtol=1e-5
    )
    assert intra_divergence(ours[:1], theirs[:1]).shape == (1,)


def test_memory_relations_are_distributions_over_the_queue():
    ours, theirs, rows = maps(0), maps(1), np.asarray(unit(maps(2, 12))[:, 0, 0])
    a, b = (np.asarray(unit(x), np.float64).reshape(3, 4, 3) for x in (ours, theirs))
    p, q = softmax(b @ rows.T / 0.1), softmax(a @ rows.T / 0.1)
    wanted = np.sum(p * np.log(p / q), axis=-1).mean(axis=1)
    found = memory_divergence(ours, theirs, jnp.asarray(rows), 0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_the_queue_is_first_in_first_out_and_its_end_is_overwritten():
    """Three rows a step in a queue of eight: at the end the last three are written again."""
    queue, at = jnp.zeros((8, 1)), jnp.int32(0)
    expected = np.zeros(8)
    places = [0, 3, 5, 0, 3]
    for step, begin in enumerate(places):
        rows = 10.0 * (step + 1) + jnp.arange(3.0)[:, None]
        queue, at = enqueue(queue, rows, at)
        expected[begin : begin + 3] = np.asarray(rows)[:, 0]
        np.testing.assert_array_equal(queue[:, 0], expected)
        assert int(at) == [3, 6, 0, 3, 6][step]
    # The released sizes: after k steps 128 k rows are data, and all 20,000 after 157.
    ones = jnp.ones((128, 1))

    def step(carry, _):
        carry = enqueue(carry[0], ones, carry[1])
        return carry, jnp.sum(carry[0])

    start = jnp.zeros((20_000, 1)), jnp.int32(0)
    (_, at), written = jax.lax.scan(step, start, None, length=157)
    np.testing.assert_array_equal(written, [*(128 * np.arange(1, 157)), 20_000])
    assert int(at) == 0
    exact, at = enqueue(jnp.zeros((6, 1)), jnp.ones((3, 1)), jnp.int32(3))
    assert (int(at), float(exact[:3].sum()), float(exact[3:].sum())) == (0, 0.0, 3.0)
    batched = jax.vmap(enqueue)(jnp.zeros((2, 8, 1)), jnp.ones((2, 3, 1)), jnp.asarray([0, 6]))
    np.testing.assert_array_equal(batched[0][1, :, 0], [0, 0, 0, 0, 0, 1, 1, 1])


def test_rows_are_different_pixels_of_the_maps():
    """The released code's rows are no pixels: they mix channels and places."""
    keys, values = jax.random.split(jax.random.key(0), 3), unit(maps(3))
    rows = np.asarray(random_pixels(keys, values, 7))
    pixels = np.asarray(values).reshape(-1, 3)
    places = [int(np.flatnonzero((pixels == row).all(axis=1))[0]) for row in rows]
    assert len(set(places)) == 7
    every = np.asarray(random_pixels(keys, values, 12))
    assert sorted(map(tuple, every)) == sorted(map(tuple, pixels))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1.0, rtol=1e-5)


def test_contrast_rows_are_evenly_spaced():
    queue = jnp.arange(20_000.0)[:, None]
    found = np.asarray(evenly_spaced(queue, 4096))[:, 0]
    assert (found[0], found[-1], len(set(found))) == (0.0, 19_995.0, 4096)
    assert set(np.diff(found)) == {4.0, 5.0}


# ------------------------------------------------------------------------------ the objective


class Judge:
    """A classifier with one linear map of pixels, whose final map has two pixels a side."""

    kernel = jnp.asarray(np.random.default_rng(4).normal(size=(4, 3)), jnp.float32)

    def __call__(self, images):
        return self.with_features(images, (FINAL_MAP,))[:2]

    def __init__(self):
        self.calls = 0

    def with_features(self, images, taps):
        self.calls += 1
        assert taps == (FINAL_MAP,)
        b = images.shape[0]
        patches = images.reshape(b, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(b, 2, 2, 4)
        final = jnp.tanh(patches @ self.kernel)
        pooled = final.mean((1, 2))
        return pooled, pooled, {FINAL_MAP: final}


def prepared(steps=100, batch=6, **changes):
    objective = make_objective({"name": "rdd", **SMALL, **changes})
    grid = np.asarray(tiny.tables().grid)[:5]
    networks = NetworkFacts(classifier_features={FINAL_MAP: MAP})
    return objective.prepare(StageFacts(grid, networks, steps, batch, tiny.IMAGE))


def networks(objective, student=1):
    found = {
        "student": tiny.tiny_denoiser(student),
        "teacher": tiny.tiny_denoiser(2),
        "classifier": Judge(),
    }
    for own in objective.auxiliaries.values():
        variables = own.module.init(jax.random.key(3), jnp.zeros((1, *MAP)))
        weights = Weights(variables["params"], variables["batch_stats"])
        found["relation_head"] = own.form.bind(own.module, weights, "v")
    return found


def batch_of(objective, seed=0):
    return tiny.batch(6, seed).replace(memory=start_memory(objective, jax.random.key(9)))


def test_the_loss_is_the_weighted_sum_of_its_terms_and_writes_the_queue():
    tables = tiny.tables()
    objective = prepared(intra_weight=2.0, memory_weight=0.25)
    batch, given = batch_of(objective), networks(objective)
    before = np.asarray(batch.memory["queue"])
    np.testing.assert_allclose(np.linalg.norm(before, axis=-1), 1.0, rtol=1e-5)
    values, metrics, aux = objective.updates[0].loss(given, batch, tables)
    assert given["classifier"].calls == 2, "the student's images and the target's, once each"
    total = metrics["classifier_distance"] + 2.0 * metrics["intra_distance"]
    total = total + 0.25 * metrics["memory_distance"]
    np.testing.assert_allclose(jnp.mean(values), total, rtol=1e-5)
    only = prepared(intra_weight=0.0, memory_weight=0.0)
    np.testing.assert_allclose(
        only.regression_loss(given, batch, tables)[1]["classifier_distance"],
        metrics["classifier_distance"],
    )
    after = np.asarray(aux.memory["queue"])
    np.testing.assert_array_equal(after[8:], before[8:])
    np.testing.assert_allclose(np.linalg.norm(after, axis=-1), 1.0, rtol=1e-5)
    assert (int(aux.memory["queue_next"]), int(aux.memory["queue_written"])) == (8, 8)
    assert float(metrics["queue_filled"]) == pytest.approx(0.4)
    assert set(aux.statistics) == {"relation_head"}
    # After three steps of eight rows, all twenty are pixels of targets.
    for seed in (1, 2):
        batch = tiny.batch(6, seed).replace(memory=aux.memory)
        *_, metrics, aux = objective.updates[0].loss(given, batch, tables)
    assert float(metrics["queue_filled"]) == 1.0
    assert not np.any(np.all(np.isin(aux.memory["queue"], before), axis=-1))


def test_no_gradient_reaches_the_queue_or_the_target():
    """A student that is its own teacher: only the student's side of every term has a gradient."""
    objective, tables = prepared(classifier_weight=0.0), tiny.tables()
    batch, given = batch_of(objective), networks(objective)

    def total(params, memory):
        teacher = given["teacher"].replace(params=params)
        loss = objective.updates[0].loss
        own = batch.replace(memory={**batch.memory, "queue": memory})
        return jnp.sum(loss({**given, "teacher": teacher}, own, tables)[0])

    def written(params):
        teacher = given["teacher"].replace(params=params)
        aux = objective.updates[0].loss({**given, "teacher": teacher}, batch, tables)[2]
        return jnp.sum(aux.memory["queue"])

    gradients = jax.grad(total)(given["teacher"].params, batch.memory["queue"])
    gradients = [gradients, jax.grad(written)(given["teacher"].params)]
    assert all(float(jnp.max(jnp.abs(x))) == 0.0 for x in jax.tree.leaves(gradients))


def test_the_head_normalises_by_the_batch_and_keeps_its_statistics():
    head, given = networks(prepared())["relation_head"], 10.0 + maps(5, 6)
    assert isinstance(head, BoundHead)
    out, statistics = head(given)
    params = jax.tree.map(np.asarray, head.weights.params)
    h = np.asarray(given) @ params["in"]["kernel"] + params["in"]["bias"]
    mean, variance = h.mean((0, 1, 2)), h.var((0, 1, 2))
    wanted = np.maximum((h - mean) / np.sqrt(variance + 1e-5), 0.0) @ params["out"]["kernel"]
    np.testing.assert_allclose(out, wanted, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(statistics["norm"]["mean"], 0.1 * mean, rtol=1e-4)


def test_needs_costs_and_wrong_settings():
    objective = prepared()
    assert (objective.teacher_calls(), objective.teacher_calls(2)) == (2, 4)
    assert "intra-sample relations" in objective.requires.whole_batch
    assert (
        prepared(classifier_weight=0.0).requires.classifier == "objective.intra_weight is above 0"
    )
    assert not prepared(intra_weight=0.0, memory_weight=0.0).taps.classifier
    for changes, words in (
        ({"contrast_rows": 30}, r"contrast_rows=30 must be 1 to queue_rows=20"),
        ({"rows_per_step": 21}, r"rows_per_step=21 must be 1 to queue_rows=20"),
        ({"queue_rows": 0}, r"queue_rows=0 must be 1 or more"),
        ({"contrast_temperature": 0.0}, "contrast_temperature=0.0 must be above 0"),
        ({"memory_weight": -1.0}, r"memory_weight=-1.0 must be a number >= 0"),
        (
            {"classifier_weight": 0.0, "intra_weight": 0.0, "memory_weight": 0.0},
            "are all 0; set one above 0",
        ),
        ({"steps": 2}, r"queue_rows=20, but 2 train steps of rows_per_step=8 write 16 rows"),
        ({"batch": 1}, r"rows_per_step=8, .* batch of 1 have 2 x 2 pixels each, 4 in all"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepared(**changes)


def test_terms_that_are_off_are_in_no_digest():
    off = make_objective({"name": "rdd", "memory_weight": 0.0})
    assert {"queue_rows", "contrast_temperature"} <= set(off.inert_hparams())
    assert (off.memory, off.auxiliaries) == ({}, {})
    on = dataclasses.replace(off, memory_weight=0.1)
    assert "queue_rows" not in on.inert_hparams()
