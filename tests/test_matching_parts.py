"""The parts of distribution matching: heads, distances, health, noise levels, and TSM."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from gaussian import GaussianDenoiser

from ddistill.diffusion import WEIGHTS, add_noise
from ddistill.errors import ConfigError
from ddistill.networks.discriminator import Discriminator
from ddistill.objectives import make_objective
from ddistill.objectives.distances import REGRESSIONS, regression_distance
from ddistill.objectives.inputs import Share, make_level_tables
from ddistill.objectives.matching.adversarial import (
    DIVERGENCES,
    density_ratio,
    discriminator_loss,
    divergence_weights,
    generator_loss,
    mean_of_bins,
    noise_bins,
)
from ddistill.objectives.matching.alarms import matching_alarms
from ddistill.objectives.matching.generator import image_health
from ddistill.objectives.sampling import LAWS, Law, draw_index, draw_level, normal
from ddistill.schedules import cosine, karras, make_grid


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


# --------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("side", [1, 3, 4, 8, 32])
def test_a_head_gives_one_logit_an_image_whatever_the_size(side):
    (features,) = arrays((3, side, side, 6))
    head = Discriminator(("mid", "down_0"))
    both = {"mid": features.astype(jnp.bfloat16), "down_0": features}
    params = head.init(jax.random.key(0), both)
    logits = head.apply(params, both)
    chex.assert_shape(logits, (3, 2))
    assert logits.dtype == jnp.float32
    # An image's logits do not depend on the others in the batch.
    first = head.apply(params, jax.tree.map(lambda x: x[:1], both))
    np.testing.assert_allclose(logits[:1], first, atol=1e-5)
    assert float(jnp.std(logits[:, 1])) > 0


# ------------------------------------------------------------------------------- adversarial


def test_gan_losses_at_a_logit_of_zero():
    zero = jnp.zeros((3, 2))
    np.testing.assert_allclose(discriminator_loss(zero, zero), 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(generator_loss(zero), np.log(2), rtol=1e-6)


def test_what_the_gan_losses_want():
    """A discriminator high logits of real images and low ones of generated, a generator high."""
    low, high = jnp.full((1, 2), -1.0), jnp.full((1, 2), 1.0)
    assert float(discriminator_loss(low, high)[0]) < float(discriminator_loss(high, high)[0])
    assert float(discriminator_loss(low, high)[0]) < float(discriminator_loss(low, low)[0])
    assert float(generator_loss(high)[0]) < float(generator_loss(low)[0])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_weights(name):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)), jnp.float32)
    h = divergence_weights(name, logits)
    assert float(jnp.mean(h)) == pytest.approx(1.0, rel=1e-5)
    r = np.exp(np.asarray(logits).mean(axis=-1))
    if name == "rkl":
        np.testing.assert_array_equal(h, 1.0)
    else:
        slope = np.corrcoef(np.asarray(h), r)[0, 1]
        assert (slope > 0) == (name not in ("softened_rkl", "neyman"))


def test_the_weights_are_of_the_second_derivative():
    """h = r^2 f''(r) of the divergence E_q f(p / q), by finite differences of f."""
    functions = {
        "rkl": lambda r: -np.log(r),
        "kl": lambda r: r * np.log(r),
        "js": lambda r: r * np.log(r) - (r + 1) * np.log((r + 1) / 2),
        "softened_rkl": lambda r: (r + 1) * np.log((r + 1) / r / 2),
        "squared_hellinger": lambda r: 1 - np.sqrt(r),
        "jeffreys": lambda r: (r - 1) * np.log(r),
        "neyman": lambda r: (r - 1) ** 2 / r,
    }
    assert functions.keys() == set(DIVERGENCES)
    logits = np.linspace(-2, 2, 9)
    r, d = np.exp(logits), 1e-3
    for name, f in functions.items():
        second = (f(r + d) - 2 * f(r) + f(r - d)) / d**2
        wanted = r**2 * second
        found = divergence_weights(name, jnp.asarray(logits[:, None], jnp.float32))
        np.testing.assert_allclose(found, wanted / wanted.mean(), rtol=1e-3, err_msg=name)


def released_weights(name, logits, t, low, high, count=10):
    """f-distill's weights as its release has them, one example at a time in float64."""
    ratios = [min(max(np.exp(row.mean()), 0.1), 20.0) for row in logits]
    bins = [min(max(int((x - low) // ((high - low) / count)), 0), count - 1) for x in t]
    by_bin = {b: [r for r, own in zip(ratios, bins) if own == b] for b in bins}
    means = {b: sum(values) / (len(values) + 1e-6) for b, values in by_bin.items()}
    h = {
        "kl": lambda r: r,
        "js": lambda r: 1 - 1 / (1 + r),
        "softened_rkl": lambda r: 1 / (1 + r),
        "squared_hellinger": np.sqrt,
        "jeffreys": lambda r: 1 + r,
        "neyman": lambda r: 1 / r,
    }[name]
    weights = np.array([h(r / (means[b] + 1e-6)) for r, b in zip(ratios, bins)])
    return weights / (weights.mean() + 1e-6)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "rkl"])
@pytest.mark.parametrize("table", [karras(1000), cosine(1000)], ids=["karras", "cosine"])
def test_ratios_are_normalised_as_f_distills_release_does(name, table):
    rng = np.random.default_rng(3)
    index = rng.integers(20, 981, 64)
    # Ratios that grow with the noise, some of them out of the range that is kept.
    logits = np.float32(rng.normal(size=(64, 3)) + 6.0 * (index[:, None] / 1000 - 0.5))
    bins = noise_bins(jnp.asarray(index), table, 1000, 10)
    mean = mean_of_bins(density_ratio(jnp.asarray(logits)), bins, jnp.ones(10))
    found = divergence_weights(name, jnp.asarray(logits), mean[bins])
    sigma = table.sigma.astype(np.float64)
    t, low, high = (index, 1, 1000) if table.alpha[-1] < 1 else (sigma[index], 0.002, 80.0)
    wanted = released_weights(name, logits.astype(np.float64), t, low, high)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    without = divergence_weights(name, jnp.asarray(logits))
    assert np.abs(np.asarray(without) - wanted).max() > 0.05


def test_bins_are_equal_in_sigma_on_edms_levels_and_in_index_on_others():
    index = jnp.asarray([1, 700, 800, 999, 1000])
    sigma = karras(1000).sigma[np.asarray(index)]
    np.testing.assert_array_equal(
        noise_bins(index, karras(1000), 1000, 10), np.minimum(sigma // 8.0, 9)
    )
    np.testing.assert_array_equal(noise_bins(index, cosine(1000), 1000, 10), [0, 6, 7, 9, 9])


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_means_of_bins_are_kept_from_step_to_step_as_f_distills_release_does(rate):
    """They begin at 1; a bin without examples stays as it was."""
    rng = np.random.default_rng(5)
    ours, theirs = jnp.ones(10), np.ones(10)
    for _ in range(4):
        values, bins = rng.uniform(0.1, 20.0, 12), rng.integers(0, 10, 12)
        for b in set(bins):
            own = values[bins == b]
            theirs[b] = rate * theirs[b] + (1 - rate) * own.sum() / (len(own) + 1e-6)
        ours = mean_of_bins(jnp.asarray(values, jnp.float32), jnp.asarray(bins), ours, rate)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len(set(bins)) < 10


@pytest.mark.parametrize("channels", [6, 16, 32, 64])
@pytest.mark.parametrize("side", [1, 4, 8])
def test_a_head_learns_to_tell_features_apart_and_says_where_to_go(channels, side):
    """A norm of groups of one channel would make its logits a constant."""
    (noise,) = arrays((32, side, side, channels))
    real = {"mid": noise[:16] + 1.5}
    fake = {"mid": noise[16:] - 1.5}
    head, optimizer = Discriminator(("mid",)), optax.adam(3e-3)
    params, apply = jax.jit(head.init)(jax.random.key(0), real), jax.jit(head.apply)

    @jax.jit
    def loss(params):
        return jnp.mean(discriminator_loss(apply(params, fake), apply(params, real)))

    # Not a scan: XLA's convolutions are slow in loops on CPU.
    @jax.jit
    def step(params, state):
        changes, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, changes), state

    @jax.jit
    def towards(params, x):
        return jax.grad(lambda x: jnp.mean(generator_loss(apply(params, {"mid": x}))))(x)

    assert float(loss(params)) > 0.5
    learnt, state = params, jax.jit(optimizer.init)(params)
    for _ in range(150):
        learnt, state = step(learnt, state)
    assert float(loss(learnt)) < 0.2
    logits = [np.asarray(apply(learnt, x)) for x in (real, fake)]
    assert np.min(logits[0]) > 0.0 > np.max(logits[1]), "real is what is positive"
    gradient = towards(learnt, fake["mid"])
    nearer = fake["mid"] - gradient / jnp.max(jnp.abs(gradient))
    moved = np.asarray(apply(learnt, {"mid": nearer}))
    assert np.mean(moved) > np.mean(logits[1]) + 1e-3, "the generator is led to real"


# ----------------------------------------------------------------------------------- distances


@pytest.mark.parametrize("name", REGRESSIONS)
def test_distances_are_zero_for_equal_images_only(name):
    image, target, weights = arrays((4, 3, 3, 2), (4, 3, 3, 2), (18, 5))

    def classifier(x):
        return None, jnp.tanh(x.reshape(len(x), -1) @ weights)

    found = regression_distance(name, image, target, classifier)
    chex.assert_shape(found, (4,))
    assert np.all(np.asarray(found) > 0)
    same = regression_distance(name, image, image, classifier)
    np.testing.assert_allclose(same, 0.0, atol=1e-7)
    gradient = jax.grad(lambda x: jnp.sum(regression_distance(name, x, image, classifier)))(image)
    assert np.all(np.isfinite(gradient))


def test_distances_by_hand():
    image, target = arrays((2, 3, 3, 2), (2, 3, 3, 2))
    squared = np.square(np.asarray(image - target, np.float64)).reshape(2, -1)
    np.testing.assert_allclose(
        regression_distance("l2", image, target, None), squared.mean(axis=1), rtol=1e-5
    )
    c = 0.00054 * np.sqrt(18)
    wanted = (np.sqrt(squared.sum(axis=1) + c**2) - c) / 18
    found = regression_distance("pseudo_huber", image, target, None)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


# -------------------------------------------------------------------------------------- health


def test_health_of_the_data_themselves():
    (images,) = arrays((16, 4, 4, 1))
    images = jnp.tanh(images)
    found = image_health(images, images)
    wanted = {"saturation": 0, "mean_drift": 0, "std_ratio": 1, "diversity": 1, "diagonal_fd": 0}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
    assert matching_alarms({k: float(v) for k, v in found.items()}) == ()


@pytest.mark.parametrize(
    ("change", "alarm", "fatal"),
    [
        (lambda x: 3.0 * jnp.sign(x), "saturation", True),
        (lambda x: 2.5 * x, "spread", False),
        (lambda x: 20.0 * x, "spread", True),
        (lambda x: 0.1 * x, "flatness", False),
        (lambda x: 0.001 * x, "flatness", True),
        (lambda x: jnp.broadcast_to(x[:1], x.shape), "collapse", True),
    ],
)
def test_what_goes_wrong_is_named(change, alarm, fatal):
    (images,) = arrays((16, 4, 4, 1))
    images = jnp.tanh(images)
    found = image_health(change(images), images)
    named = {a.name: a.fatal for a in matching_alarms({k: float(v) for k, v in found.items()})}
    assert named.get(alarm) == fatal
    assert float(found["diagonal_fd"]) > 0


def test_health_in_a_classifiers_features():
    """Images that differ in pixels alone are one image to a classifier that does not see it."""
    (images,) = arrays((16, 4, 4, 1))

    def blind(x):
        return None, jnp.ones((len(x), 3)) * jnp.mean(jnp.square(x))

    assert float(image_health(images, -images, blind)["diagonal_fd"]) == pytest.approx(
        0.0, abs=1e-6
    )
    assert float(image_health(images, -images)["diagonal_fd"]) > 0


def test_a_discriminator_that_has_won():
    (alarm,) = matching_alarms({"logit_real": 15.0, "logit_fake": -15.0})
    assert alarm.name == "discriminator"
    assert not alarm.fatal
    assert matching_alarms({"logit_real": 1.0, "logit_fake": -1.0}) == ()


# ---------------------------------------------------------------------------------- the levels


def test_lognormal_levels_are_edms():
    """arXiv 2206.00364 table 1: ln sigma ~ N(-1.2, 1.2^2), here to the next level of the table."""
    schedule = karras(400)
    shown = make_level_tables(schedule, make_grid(schedule, 400))
    keys = jax.random.split(jax.random.key(0), 20_000)
    index = np.asarray(draw_level(keys, shown, Law("lognormal")))
    drawn = np.log(np.asarray(schedule.sigma)[index])
    assert drawn.mean() == pytest.approx(-1.2, abs=0.03)
    assert drawn.std() == pytest.approx(1.2, abs=0.03)
    assert index.min() >= 1


@pytest.mark.parametrize(("low", "high"), [(1, 16), (17, 32), (49, 64)])
def test_lognormal_levels_of_a_range_are_edms_given_the_range(low, high):
    """Also far above the mean, where hardly any of the whole law's draws lie."""
    schedule = karras(64)
    shown = make_level_tables(schedule, make_grid(schedule, 64), rows=70, share=Share(low, high))
    keys = jax.random.split(jax.random.key(0), 20_000)
    index = np.asarray(draw_level(keys, shown, Law("lognormal")))
    found = np.bincount(index, minlength=65)[low : high + 1] / len(index)
    edges = (np.log(np.asarray(schedule.sigma, np.float64)[low - 1 : high + 1] + 1e-30) + 1.2) / 1.2
    below = np.array([0.5 * math.erfc(-e / np.sqrt(2)) for e in edges])
    above = np.array([0.5 * math.erfc(e / np.sqrt(2)) for e in edges])
    wanted = np.where(edges[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1])
    if high == 64:
        wanted[-1] = above[-2]
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.015)
    assert index.min() >= low
    assert index.max() <= high


def test_lognormal_levels_outside_of_a_range():
    schedule = karras(64)
    grid = make_grid(schedule, 64)
    shown = make_level_tables(schedule, grid, share=Share(49, 64, 0.5))
    keys = jax.random.split(jax.random.key(0), 4000)
    index = np.asarray(draw_level(keys, shown, Law("lognormal")))
    assert np.mean(index < 49) == pytest.approx(0.5, abs=0.04)


def test_levels_stay_in_a_students_range():
    schedule = karras(64)
    shown = make_level_tables(schedule, make_grid(schedule, 64), rows=80, share=Share(10, 30))
    keys = jax.random.split(jax.random.key(0), 2000)
    for law in LAWS:
        index = np.asarray(draw_level(keys, shown, Law(law)))
        assert index.min() == 10, law
        assert index.max() == 30, law
    chex.assert_trees_all_equal(draw_level(keys, shown, Law()), draw_index(keys, shown))


# ----------------------------------------------------------------------------------------- TSM


@pytest.mark.parametrize("weight", WEIGHTS)
def test_tsm_is_zero_at_the_teacher_and_there_only(weight):
    """So the minimiser does not depend on the weight of a level."""
    method, shown, batch = (
        make_objective({"name": "tsm", "weight": weight}),
        tiny.tables(),
        tiny.batch(),
    )

    def total(params):
        student = tiny.tiny_denoiser().replace(params=params)
        networks = {"student": student, "teacher": tiny.tiny_denoiser()}
        values, _ = method.regression_loss(networks, batch, shown)
        chex.assert_shape(values, (6,))
        return jnp.sum(values)

    value, gradient = jax.value_and_grad(total)(tiny.tiny_params())
    assert value == 0
    assert optax.tree.norm(gradient) == 0
    assert total(tiny.tiny_params(1)) > 0


def test_tsm_is_edms_weighted_distance_of_the_two_answers():
    """Exact denoisers of two Gaussians: (sigma^2 + 1/4) / (sigma / 2)^2 times the squared gap."""
    schedule = karras(16)
    shown = make_level_tables(schedule, make_grid(schedule, 16))
    method, batch = make_objective({"name": "tsm"}), tiny.batch(12)
    student, teacher = GaussianDenoiser(0.2, 0.5), GaussianDenoiser(-0.1, 0.8)
    values, _ = method.regression_loss({"student": student, "teacher": teacher}, batch, shown)
    level = shown.student.at(draw_level(batch.key("level"), shown, Law("lognormal")))
    z = add_noise(batch.image, normal(batch.key("noise"), batch.image), level)
    gap = np.asarray(student(z, level).x0 - teacher(z, level).x0, np.float64)
    sigma = np.asarray(level.sigma, np.float64)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    wanted = weight * np.square(gap).reshape(12, -1).mean(axis=1)
    np.testing.assert_allclose(values, wanted, rtol=1e-4)
    assert method.teacher_calls() == 1


@pytest.mark.parametrize(
    ("hyper", "words"), [({"weight": "edn"}, "edm"), ({"levels": "log_normal"}, "lognormal")]
)
def test_settings_of_tsm_that_do_not_exist(hyper, words):
    with pytest.raises(ConfigError, match=words):
        make_objective({"name": "tsm", **hyper})
