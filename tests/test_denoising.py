"""Denoising and classification: weights are the published ones and draws belong to examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gaussian import GaussianDenoiser

from ddistill.errors import ConfigError
from ddistill.networks.weights import Weights
from ddistill.objectives import make_objective
from ddistill.objectives.classification import Classification, Classifier
from ddistill.objectives.denoising import Denoising
from ddistill.objectives.parts import StageFacts


def values(objective, student, batch=None, tables=None):
    batch, tables = batch or tiny.batch(), tables or tiny.tables()
    return objective.regression_loss({"student": student}, batch, tables)[0]


@pytest.mark.parametrize("weight", ["snr", "truncated_snr", "min_snr", "edm"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_a_named_weight_is_the_same_loss_in_every_error(weight, prediction):
    student = tiny.tiny_denoiser(prediction=prediction)
    tables = tiny.tables(levels=3, steps=8)
    a, b, c = (
        values(Denoising(error=error, weight=weight), student, tables=tables)
        for error in ("x0", "eps", "v")
    )
    np.testing.assert_allclose(a, b, rtol=2e-3)
    np.testing.assert_allclose(a, c, rtol=2e-3)


def test_uniform_weights_are_related_by_the_signal_to_noise_ratio():
    student, tables = tiny.tiny_denoiser(), tiny.tables(levels=1, steps=16)
    alpha, sigma = (float(x[-1]) for x in (tables.student.alpha, tables.student.sigma))
    ratio = (alpha / sigma) ** 2
    x0, eps, v = (
        values(Denoising(error=e, weight="uniform"), student, tables=tables)
        for e in ("x0", "eps", "v")
    )
    np.testing.assert_allclose(eps, ratio * x0, rtol=1e-3)
    np.testing.assert_allclose(v, (1 + ratio) * x0, rtol=1e-3)


def test_truncated_and_min_snr_weights_have_their_bounds():
    student = tiny.tiny_denoiser()
    for levels, steps in ((1, 16), (16, 16)):
        tables = tiny.tables(levels=levels, steps=steps)
        batch = tiny.batch(32)
        x0 = values(Denoising(error="x0", weight="uniform"), student, batch, tables)
        snr = values(Denoising(error="x0", weight="snr"), student, batch, tables) / x0
        truncated = values(Denoising(error="x0", weight="truncated_snr"), student, batch, tables)
        clipped = values(
            Denoising(error="x0", weight="min_snr", min_snr_gamma=2.0), student, batch, tables
        )
        np.testing.assert_allclose(truncated / x0, np.maximum(snr, 1.0), rtol=1e-4)
        np.testing.assert_allclose(clipped / x0, np.minimum(snr, 2.0), rtol=1e-4)


def test_exact_denoiser_of_the_data_loses_less_than_a_shifted_one():
    rng = np.random.default_rng(0)
    batch = tiny.batch(512)
    batch = batch.replace(image=jnp.asarray(rng.normal(0.2, 0.5, batch.image.shape), jnp.float32))
    tables = tiny.tables(levels=32)
    exact = values(Denoising(), GaussianDenoiser(mean=0.2, std=0.5), batch, tables).mean()
    for mean, std in ((0.0, 0.5), (0.2, 0.7), (0.2, 0.35)):
        other = values(Denoising(), GaussianDenoiser(mean=mean, std=std), batch, tables).mean()
        assert float(exact) < float(other)


@pytest.mark.parametrize("objective", [Denoising()])
def test_what_is_drawn_for_an_example_does_not_depend_on_its_batch(objective):
    student, whole = tiny.tiny_denoiser(), tiny.batch(6)
    halves = [jax.tree.map(lambda x, s=s: x[s], whole) for s in (slice(0, 2), slice(2, 6))]
    parts = jnp.concatenate([values(objective, student, half) for half in halves])
    np.testing.assert_allclose(values(objective, student, whole), parts, rtol=1e-5)


def test_label_dropout_gives_the_null_class_at_its_rate():
    seen = []

    def student(z, level, cond=None, *, key=None):
        seen.append(np.asarray(cond))
        return tiny.tiny_denoiser()(z, level)

    batch = tiny.batch(400, conditional=True)
    values(Denoising(label_dropout=0.25, null_class=3), student, batch)
    dropped = seen[0] == 3
    assert 0.17 < dropped.mean() < 0.33
    np.testing.assert_array_equal(seen[0][~dropped], np.asarray(batch.label)[~dropped])


def test_dropout_is_on_while_training():
    module = tiny.TinyNet(dropout=0.5)
    student, batch = tiny.tiny_denoiser(module=module), tiny.batch()
    a, b = values(Denoising(), student, batch), values(Denoising(), tiny.tiny_denoiser(), batch)
    assert float(jnp.abs(a - b).max()) > 1e-4


def test_classification_loss_is_cross_entropy_and_gives_accuracy():
    from ddistill.networks import build

    module = build("digits_classifier", num_classes=3, width=8, feature_dim=4, dropout=0.0)
    images = jnp.zeros((1, 8, 8, 1))
    params = module.init(jax.random.key(0), images)["params"]
    batch = tiny.batch(5).replace(image=jax.random.uniform(jax.random.key(1), (5, 8, 8, 1)))
    classifier = Classifier(Weights(params), module)
    found, metrics, _ = Classification().loss({"student": classifier}, batch, tiny.tables())
    logits = np.asarray(classifier(batch.image)[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    labels = np.asarray(batch.label)
    np.testing.assert_allclose(found, -log_p[np.arange(5), labels], rtol=1e-4)
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == labels).mean())


def test_shift_moves_images_by_whole_pixels_and_fills_with_black():
    objective = Classification(shift=1)
    image = jnp.arange(16.0).reshape(4, 4, 1)
    moved = {
        tuple(np.asarray(objective._shift(k, image)).ravel().tolist())
        for k in jax.random.split(jax.random.key(0), 200)
    }
    assert len(moved) == 9
    assert tuple(np.asarray(image).ravel().tolist()) in moved


def test_labels_that_a_network_is_not_given_are_not_dropped():
    objective = Denoising(label_dropout=0.1, null_class=3)
    facts = StageFacts(np.arange(9), steps=10)
    with pytest.raises(ConfigError, match=r"label_dropout=0.1 has no effect.*conditional=False"):
        objective.prepare(facts)
    objective.prepare(dataclasses.replace(facts, conditional=True))


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"name": "denoising", "weight": "min-snr"}, "Did you mean 'min_snr'"),
        ({"name": "denoising", "error": "noise"}, "Allowed: eps, flow, v, x0"),
        ({"name": "denoising", "label_dropout": 1.5}, "label_dropout=1.5"),
        ({"name": "classification", "label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"name": "denoisng"}, "Did you mean 'denoising'"),
    ],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        make_objective(settings)
