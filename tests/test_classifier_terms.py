"""CFD's and RCFD's distances: against the formulas in float64, and what they may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from test_progressive import halved

from ddistill.errors import ConfigError
from ddistill.networks import build
from ddistill.networks.weights import Weights
from ddistill.objectives import make_objective
from ddistill.objectives.classification import Classifier
from ddistill.objectives.denoising import Denoising
from ddistill.objectives.distances import class_terms, feature_divergence
from ddistill.objectives.parts import StageFacts
from ddistill.objectives.progressive import Progressive
from ddistill.objectives.sfddm import SFDDM
from ddistill.schedules import cosine

CFD = {"classifier_weight": 1.0, "pixel_weight": 0.0}
RCFD = {**CFD, "tau": 0.95, "beta": 0.003, "gamma": 0.75}


class TinyClassifier(nn.Module):
    """Post-ReLU features and logits that are linear in them."""

    @nn.compact
    def __call__(self, x, train=False):
        features = nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(features), features


def classifier(seed: int = 5) -> Classifier:
    module = TinyClassifier()
    variables = module.init(jax.random.key(seed), jnp.zeros((1, *tiny.IMAGE)))
    return Classifier(Weights(variables["params"]), module)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def features(seed, shape=(6, 1920)):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("tau", [1.0, 0.95, 0.9, 0.75])
def test_divergence_equals_the_formula(tau):
    student, target = features(0), features(1)
    p, q = softmax(target / tau), softmax(student)
    wanted = (p * (np.log(p) - np.log(q))).sum(axis=-1)
    found = feature_divergence(jnp.asarray(student), jnp.asarray(target), tau)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_equal_features_lose_nothing_at_tau_1_and_have_no_gradient():
    f = jnp.asarray(features(2), jnp.float32)
    value, gradient = jax.value_and_grad(lambda x: feature_divergence(x, f, 1.0).sum())(f)
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-8)


@pytest.mark.parametrize("tau", [0.9, 0.95])
def test_the_minimum_lies_at_the_target_over_tau(tau):
    f = jnp.asarray(features(3), jnp.float32)
    loss = lambda x: feature_divergence(x, f, tau).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(f / tau + 0.7), 0.0, atol=1e-8)
    at_equal = jax.grad(loss)(f)
    np.testing.assert_allclose(at_equal, softmax(np.asarray(f)) - softmax(f / tau), atol=1e-7)
    assert float(jnp.abs(at_equal).max()) > 1e-5


def test_loss_of_equal_normal_features_is_that_of_two_tilted_gaussians():
    """For many N(0, 1) features both softmaxes tilt a Gaussian: KL = (1 / tau - 1)^2 / 2."""
    f = features(4, (256, 1920))
    found = float(feature_divergence(f, f, 0.9).mean())
    np.testing.assert_allclose(found, (1 / 0.9 - 1) ** 2 / 2, rtol=0.05)


@settings(max_examples=30, deadline=None)
@given(shift=st.floats(-50, 50), scale=st.floats(0.01, 30), tau=st.floats(0.5, 2))
def test_divergence_is_not_negative_and_ignores_a_constant(shift, scale, tau):
    student, target = scale * features(5, (3, 40)), scale * features(6, (3, 40))
    value = np.asarray(feature_divergence(jnp.asarray(student), jnp.asarray(target), tau))
    assert np.all(value >= -1e-5)
    assert np.all(np.isfinite(value))
    moved = feature_divergence(jnp.asarray(student + shift), jnp.asarray(target), tau)
    np.testing.assert_allclose(moved, value, rtol=1e-3, atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.0, 200.0), count=st.integers(1, 9), classes=st.integers(2, 12))
def test_class_terms_equal_the_formulas_and_keep_their_bounds(scale, count, classes):
    logits = scale * features(7, (count, classes))
    # Every shape is compiled anew: one program for each, and not one for each operation.
    entropy, diversity = (np.asarray(v) for v in jax.jit(class_terms)(logits))
    p = softmax(logits)
    mean = p.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted_entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=-1)
        wanted_diversity = np.where(mean > 0, mean * np.log(mean), 0.0).sum()
    np.testing.assert_allclose(entropy, wanted_entropy, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(diversity.mean(), wanted_diversity, rtol=1e-4, atol=1e-4)
    assert np.all(entropy >= -1e-6)
    assert np.all(entropy <= np.log(classes) + 1e-5)
    assert -np.log(classes) - 1e-5 <= diversity.mean() <= 1e-6


def test_extreme_predictions_stay_finite():
    one_hot = jnp.asarray([[1e4, 0.0, 0.0], [0.0, 0.0, -1e4]])
    gradient = jax.grad(lambda x: sum(v.sum() for v in class_terms(x)))(one_hot)
    assert np.all(np.isfinite(gradient))
    entropy, _ = class_terms(jnp.asarray([[1e4, 0.0, 0.0]]))
    assert float(entropy[0]) == 0.0
    _, uniform = class_terms(jnp.eye(3) * 1e4)
    np.testing.assert_allclose(uniform.mean(), -np.log(3), rtol=1e-6)


def networks(student=None, teacher=None, judge=None):
    return {
        "student": tiny.tiny_denoiser(1) if student is None else student,
        "teacher": tiny.tiny_denoiser(0) if teacher is None else teacher,
        "classifier": classifier() if judge is None else judge,
    }


def test_the_objective_is_the_sum_of_its_formulas():
    tables, batch = halved(cosine(16), 8), tiny.batch(10)
    seen = {}

    def judge(images):
        out = classifier()(images)
        seen[len(seen)] = [np.asarray(v, np.float64) for v in out]
        return out

    values, metrics = Progressive(**RCFD).regression_loss(networks(judge=judge), batch, tables)
    (_, wanted), (logits, found) = seen[0], seen[1]
    p, q = softmax(wanted / 0.95), softmax(found)
    divergence = (p * np.log(p / q)).sum(axis=-1)
    prob = softmax(logits)
    mean = prob.mean(axis=0)
    entropy, spread = -(prob * np.log(prob)).sum(axis=-1).mean(), (mean * np.log(mean)).sum()
    total = divergence.mean() + 0.003 * (0.75 * entropy + 0.25 * spread)
    np.testing.assert_allclose(values.mean(), total, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(metrics["diversity"], spread, rtol=1e-5)
    pixels, _ = Progressive().regression_loss(networks(), batch, tables)
    mixed, _ = Progressive(**{**RCFD, "pixel_weight": 0.5}).regression_loss(
        networks(), batch, tables
    )
    np.testing.assert_allclose(mixed, values + 0.5 * pixels, rtol=1e-5)


def test_without_class_terms_it_is_cfd_with_the_target_of_pd():
    tables, batch = halved(cosine(16), 8), tiny.batch(6)
    seen = []

    def judge(images):
        seen.append(images)
        return classifier()(images)

    cfd, _ = Progressive(**CFD).regression_loss(networks(judge=judge), batch, tables)
    also, _ = Progressive(**{**CFD, "beta": 0.0, "gamma": 0.1}).regression_loss(
        networks(), batch, tables
    )
    np.testing.assert_array_equal(cfd, also)

    def target_of_pd(images, index=None):
        from test_progressive import drawn, expand

        rows, eps = drawn(batch, tables)
        level = tables.student.at(jnp.asarray(rows))
        z = expand(level.alpha, batch.image) * batch.image + expand(level.sigma, eps) * eps
        state = tiny.state(z, rows, tables)
        return Progressive().target({"teacher": tiny.tiny_denoiser(0)}, state, tables).x0

    np.testing.assert_allclose(seen[0], target_of_pd(None), atol=1e-6)


@pytest.mark.parametrize("hyper", [CFD, RCFD])
def test_gradient_goes_through_the_classifier_into_the_student_alone(hyper):
    tables, batch = halved(cosine(16), 8), tiny.batch(6)

    def value(student, teacher):
        bound = [tiny.tiny_denoiser().replace(params=p) for p in (student, teacher)]
        return Progressive(**hyper).regression_loss(networks(*bound), batch, tables)[0].mean()

    to_student, to_teacher = jax.grad(value, argnums=(0, 1))(
        tiny.tiny_params(1), tiny.tiny_params(0)
    )
    assert all(float(jnp.abs(g).max()) > 0.0 for g in jax.tree.leaves(to_student))
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(to_teacher))


def test_doubling_the_batch_changes_no_mean():
    tables, batch = halved(cosine(16), 8), tiny.batch(5)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
    one, _ = Progressive(**RCFD).regression_loss(networks(), batch, tables)
    two, _ = Progressive(**RCFD).regression_loss(networks(), twice, tables)
    np.testing.assert_allclose(one.mean(), two.mean(), rtol=1e-5)


def test_sfddm_takes_the_same_distance():
    tables, batch = tiny.tables(), tiny.batch(6)
    grid = np.asarray(tables.grid)[:5]
    plain = SFDDM(substeps=2).prepare(StageFacts(grid))
    judged = SFDDM(substeps=2, classifier_weight=2.0, tau=1.0).prepare(StageFacts(grid))
    a, _ = plain.regression_loss(networks(), batch, tables)
    b, metrics = judged.regression_loss(networks(), batch, tables)
    assert float(metrics["classifier_distance"]) > 0
    np.testing.assert_allclose(b.mean() - a.mean(), 2.0 * metrics["classifier_distance"], rtol=1e-4)
    assert judged.requires.classifier
    assert not plain.requires.classifier


@pytest.mark.parametrize(
    ("hyper", "part"),
    [
        ({"tau": 0.0}, "objective.tau=0.0 must be above 0"),
        ({"gamma": 1.5}, "objective.gamma=1.5"),
        ({"beta": -0.1}, "objective.beta=-0.1"),
        ({"classifier_weight": -1.0}, "classifier_weight=-1.0"),
    ],
)
@pytest.mark.parametrize("name", ["progressive", "sfddm"])
def test_hyperparameters_are_checked(name, hyper, part):
    with pytest.raises(ConfigError, match=part):
        make_objective({"name": name, **hyper})


def test_denoising_compares_with_the_image_itself():
    batch, tables = tiny.batch(6), tiny.tables()
    judge = classifier()
    student = tiny.tiny_denoiser(1)
    plain, _ = Denoising().regression_loss(networks(), batch, tables)
    seen = []

    def watched(images):
        seen.append(images)
        return judge(images)

    judged, metrics = Denoising(classifier_weight=3.0, tau=1.0).regression_loss(
        networks(student, judge=watched), batch, tables
    )
    np.testing.assert_array_equal(seen[0], batch.image)
    distance = feature_divergence(judge(seen[1])[1], judge(batch.image)[1], 1.0)
    np.testing.assert_allclose(judged, plain + 3.0 * distance, rtol=1e-5)
    np.testing.assert_allclose(metrics["classifier_distance"], distance.mean(), rtol=1e-5)


def flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_features_cost_two_forward_passes_and_one_backward():
    """Counted, so that no noise of a machine hides a forward pass made twice."""
    tables, batch = halved(cosine(16), 8), tiny.batch(8)
    module = build("resnet", width=8, blocks=(1, 1))
    variables = module.init(jax.random.key(0), jnp.zeros((1, *tiny.IMAGE)))
    judge = Classifier(Weights(variables["params"], variables["batch_stats"]), module)

    def step(objective):
        def gradient(params):
            def value(params):
                student = tiny.tiny_denoiser().replace(params=params)
                return objective.regression_loss(networks(student, judge=judge), batch, tables)[
                    0
                ].mean()

            return jax.grad(value)(params)

        return flops(gradient, tiny.tiny_params(1))

    both = flops(jax.value_and_grad(lambda x: jnp.sum(judge(x)[1] ** 2)), batch.image)
    added = step(Progressive(**CFD)) - step(Progressive())
    assert 1.2 * both < added < 2.2 * both
