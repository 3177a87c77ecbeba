"""Batched feature extraction: padding, quantisation, hashes and scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddistill.evaluation.metrics.features import (
    Sampling,
    extract,
    feature_batches,
    fixed_strata,
    params_hash,
    reference,
    score,
)
from ddistill.evaluation.metrics.pixels import quantise


def _images(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, size=(n, 4, 4, 1)).astype(np.float32)


@pytest.mark.parametrize("count, batch", [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_padding_never_leaves_and_order_is_kept(count, batch):
    images, traces = _images(count), []

    @jax.jit
    def apply(x):
        traces.append(x.shape)
        return {"sum": x.sum(axis=(1, 2, 3)), "flat": x.reshape(len(x), -1)}

    got = extract(apply, images, batch)
    np.testing.assert_array_equal(got["flat"], images.reshape(count, -1))
    np.testing.assert_allclose(got["sum"], images.sum(axis=(1, 2, 3)), rtol=1e-5)
    assert traces == [(batch, 4, 4, 1)]
    sizes = [len(part["sum"]) for part in feature_batches(apply, images, batch)]
    assert sum(sizes) == count
    assert max(sizes) <= batch


def test_uint8_floats_and_quantised_floats():
    images = _images(5)
    as_bytes = quantise(images)
    apply = jax.jit(lambda x: x)
    exact, rounded = extract(apply, images, 2), extract(apply, images, 2, quantise=True)
    np.testing.assert_array_equal(exact, images)
    np.testing.assert_array_equal(rounded, extract(apply, as_bytes, 2))
    assert 0 < np.abs(rounded - exact).max() <= 0.5 / 127.5 + 1e-6
    assert rounded.dtype == np.float32
    beyond = extract(apply, images * 3, 2, quantise=True)
    assert np.abs(beyond).max() <= 1


def test_quantise_follows_the_rule_and_round_trips():
    x = np.array([-1.0, -0.999, 0.0, 1.0, 2.0, -7.0], np.float32)
    np.testing.assert_array_equal(quantise(x), [0, 0, 128, 255, 255, 0])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise(every / np.float32(127.5) - np.float32(1)), every)


def test_reads_lazy_sets_by_take():
    images = _images(5)

    class Lazy:
        def __len__(self):
            return len(images)

        def take(self, indices):
            return images[indices]

    np.testing.assert_array_equal(extract(jax.jit(lambda x: x), Lazy(), 2), images)


def test_errors():
    apply = jax.jit(lambda x: x)
    with pytest.raises(ValueError, match="0 images"):
        extract(apply, _images(0), 2)
    with pytest.raises(ValueError, match="batch=0"):
        extract(apply, _images(3), 0)
    with pytest.raises(ValueError, match="diverged"):
        extract(apply, np.full((2, 4, 4, 1), np.nan, np.float32), 2)
    with pytest.raises(ValueError, match="batch as its first axis"):
        extract(jax.jit(lambda x: x.mean()), _images(3), 2)


def test_params_hash_sees_names_shapes_types_and_values():
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(2)}
    same = {"b": np.zeros(2, np.float32), "a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    assert params_hash(params) == params_hash(same)
    assert len(params_hash(params)) == 8
    others = [
        {**params, "b": jnp.array([0.0, 1e-30])},
        {**params, "a": params["a"].reshape(3, 2)},
        {**params, "b": jnp.zeros(2, jnp.int32)},
        {"c": params["a"], "b": params["b"]},
    ]
    assert len({params_hash(p) for p in [params, *others]}) == 5


def test_score_of_real_against_itself_and_of_noise():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = rng.normal(size=(90, 5)) + labels[:, None]
    real = reference(features, labels, 3)
    logits = np.eye(3)[labels]
    itself = score(real, features, logits, labels)
    assert itself["fd"].value == pytest.approx(0, abs=1e-9)
    assert {itself[m].value for m in ("precision", "recall", "coverage", "accuracy")} == {1}
    assert itself["class_tv"].value == 0
    away = score(real, features + 100, np.eye(3)[np.zeros(90, int)])
    assert away["fd"].value == pytest.approx(5 * 100**2, rel=1e-6)
    assert away["coverage"].value == 0
    assert away["class_tv"].value == pytest.approx(2 / 3)
    assert "accuracy" not in away
    assert set(score(reference(features), features)) == {
        "fd", "fd_infinity", "precision", "recall", "density", "coverage",
    }  # fmt: skip
    for name, score_of in itself.items():
        assert (score_of.low is None) == (name == "accuracy")


def test_class_shares_are_taken_at_the_equal_count():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(400, 2)), np.arange(400) % 4
    real = reference(features, labels, 4)
    logits = np.eye(4)[rng.integers(0, 4, 400)]
    whole = score(real, features, logits)["class_tv"].value
    part = score(real, features, logits, sampling=Sampling(count=25))["class_tv"].value
    # The expected distance of 25 draws is four times that of 400, as 1 / sqrt(N) has it.
    assert part > 2 * whole
    balanced = score(
        real, features, np.eye(4)[labels], sampling=Sampling(count=100, strata=labels)
    )["class_tv"]
    assert balanced.value == balanced.high == 0.0


def test_classes_are_fixed_where_their_numbers_are_those_of_the_reference():
    shares = np.array([0.5, 0.25, 0.25])
    labels = np.repeat([0, 1, 2], [10, 5, 6])
    np.testing.assert_array_equal(fixed_strata(labels, shares), labels)
    assert fixed_strata(np.repeat([0, 1, 2], [10, 3, 8]), shares) is None
    assert fixed_strata(labels, np.zeros(0)) is None


def test_neighbour_scores_thin_sorted_sets_evenly():
    rng = np.random.default_rng(1)
    modes = np.repeat([[0.0, 0.0], [100.0, 0.0]], 50, axis=0)  # sorted by class
    real = reference(modes + rng.normal(size=(100, 2)), max_neighbours=40)
    thin = score(real, modes + rng.normal(size=(100, 2)))
    assert thin["recall"].value > 0.6  # the first 40 alone would miss the second class
    one_mode = score(real, rng.normal(size=(100, 2)))
    assert one_mode["coverage"].value <= 0.5
