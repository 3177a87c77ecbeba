"""The registry of networks and the digits classifier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from ddistill.errors import ConfigError
from ddistill.networks import NETWORKS, build


def test_build_makes_every_network():
    for name, cls in NETWORKS.items():
        assert isinstance(build(name), cls)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("unit", {}, ["network.name='unit'", "'unet'"]),
        ("unet", {"chanels": 8}, ["network.chanels", "Did you mean 'channels'?"]),
        ("unet", {"resample": "resblok"}, ["resample='resblok'", "Did you mean 'resblock'?"]),
        ("unet", {"time_conditioning": "film"}, ["additive", "scale_shift"]),
        ("unet", {"dtype": "float16"}, ["float16", "bfloat16"]),
        ("unet", {"conv_impl": "mathmul"}, ["Did you mean 'matmul'?"]),
        ("unet", {"channels": "64"}, ["network.channels='64'", "text", "a whole number"]),
        ("unet", {"channels": True}, ["network.channels=True", "is a truth value"]),
        ("unet", {"multipliers": (1, 2.5)}, ["network.multipliers", "integers"]),
        ("unet", {"multipliers": ()}, ["multipliers=()"]),
        ("unet", {"channels": 7}, ["channels=7", "even"]),
        ("unet", {"dropout": 1.0}, ["dropout=1.0", "[0, 1)"]),
        ("unet", {"blocks": 0}, ["blocks=0"]),
        ("unet", {"head_dim": -1}, ["head_dim=-1"]),
        ("unet", {"parent": None}, ["network.parent"]),
        ("digits_classifier", {"widht": 8}, ["Did you mean 'width'?"]),
    ],
)
def test_build_refuses_with_the_nearest_match(name, options, words):
    with pytest.raises(ConfigError) as error:
        build(name, **options)
    for word in words:
        assert word in str(error.value)


def test_build_takes_lists_and_integers_for_floats_and_gives_a_hashable_module():
    module = build("unet", multipliers=[1, 2], attention=[], dropout=0)
    assert module.multipliers == (1, 2)
    assert isinstance(module.dropout, float)
    assert hash(module) == hash(build("unet", multipliers=(1, 2), attention=(), dropout=0.0))


@pytest.fixture(scope="module")
def classifier():
    module = build("digits_classifier")
    images = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1), minval=-1.0)
    return module, module.init(jax.random.key(1), images)["params"], images


def test_classifier_shapes_and_parameters(classifier):
    module, params, images = classifier
    logits, features = module.apply({"params": params}, images)
    assert logits.shape == (3, 10)
    assert features.shape == (3, 64)
    assert logits.dtype == features.dtype == jnp.float32
    last = params["logits"]
    np.testing.assert_allclose(features @ last["kernel"] + last["bias"], logits, rtol=1e-5)


def test_classifier_examples_do_not_mix(classifier):
    """Group norm has no batch statistics: an image's logits do not depend on its neighbours."""
    module, params, images = classifier
    together, _ = module.apply({"params": params}, images)
    alone, _ = module.apply({"params": params}, images[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-6)


def test_classifier_dropout_only_in_training(classifier):
    module, params, images = classifier

    def logits(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply({"params": params}, images, train=train, rngs=rngs)[0]

    np.testing.assert_array_equal(logits(0, False), logits(1, False))
    assert not np.allclose(logits(0, True), logits(1, True))


SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (), "out_channels": 1}
TEXT = {"widths": (8,), "blocks": (1,), "attends": (), "context_dim": 4, "norm_groups": 4}
DENOISERS = {
    "unet": {**SMALL, "norm_groups": 4, "mid_attention": False, "time_scale": 1e-3},
    "song": SMALL,
    "dhariwal": SMALL,
    "dit": {"width": 8, "depth": 1, "heads": 2, "out_channels": 1, "time_scale": 1e-3},
    "text_unet": {**TEXT, "heads": (2,), "out_channels": 1, "guidance_dim": 8},
}


@pytest.mark.parametrize("name", DENOISERS)
def test_times_are_embedded_in_float32_in_networks_of_bfloat16_too(name):
    """In bfloat16 neighbours among 1000 levels would have one embedding."""
    exact, rough = (build(name, **DENOISERS[name], dtype=d) for d in ("float32", "bfloat16"))
    count, scaled = 1000, "time_scale" in DENOISERS[name]
    time = jnp.linspace(1.0, 1000.0, count) * (1.0 if scaled else 1e-3)
    x, cond = jnp.zeros((count, 4, 4, 1)), None
    if name == "text_unet":
        one = dataclasses.replace(exact.example_condition(), guidance=jnp.full(1, 3.0))
        cond = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), one)
    shapes = jax.eval_shape(exact.init, jax.random.key(0), x, time, cond)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)

    def embedded(net):
        def run(params, time):
            _, kept = net.apply(
                {"params": params},
                *(x, time, cond),
                capture_intermediates=lambda module, _: module.name == "time_1",
                mutable="intermediates",
            )
            return kept["intermediates"]["time_1"]["__call__"][0]

        return jax.jit(run)(params, time)

    wanted, found = embedded(exact), embedded(rough)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.asarray(found), axis=0)) == count


def test_classifier_refuses_odd_sizes():
    with pytest.raises(ConfigError, match="even"):
        jax.eval_shape(build("digits_classifier").init, jax.random.key(0), jnp.zeros((1, 7, 8, 1)))


def test_classifier_refuses_groups_that_do_not_divide():
    module = build("digits_classifier", width=20)
    with pytest.raises(ConfigError, match=r"norm_groups=8 does not divide the 20 channels"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_classifier_learns_digits():
    """150 steps of a narrow classifier on real digits; a constant answer would score 10 %."""
    digits = load_digits()
    images = jnp.asarray(digits.images[..., None] / 8.0 - 1.0, jnp.float32)
    labels = jnp.asarray(digits.target)
    module = build("digits_classifier", width=8, norm_groups=4)
    params = jax.jit(module.init)(jax.random.key(0), images[:1])["params"]
    optimizer = optax.adam(3e-3)

    def loss(params, x, y, key):
        logits, _ = module.apply({"params": params}, x, train=True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, x, y, key):
        grads = jax.grad(loss)(params, x, y, key)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    rng = np.random.default_rng(0)
    for i in range(150):
        index = rng.integers(0, 1400, 64)
        params, state = step(
            params, state, images[index], labels[index], jax.random.fold_in(jax.random.key(2), i)
        )
    logits, _ = module.apply({"params": params}, images[1400:])
    assert jnp.mean(logits.argmax(-1) == labels[1400:]) > 0.8
