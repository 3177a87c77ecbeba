"""What a `Denoiser` gives its network and makes of the answer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from gaussian import GaussianDenoiser

from ddistill.denoiser import Denoiser, ModuleApply
from ddistill.diffusion import KINDS, add_noise, convert
from ddistill.errors import ConfigError
from ddistill.schedules import Level, cosine, karras

IMAGE = (4, 4, 2)


class Net(nn.Module):
    """Convolution, time, label, dropout and one tap: all that a network may have."""

    width: int = 3
    out_channels: int = 2
    dropout: float = 0.0
    bfloat16: bool = False

    @nn.compact
    def __call__(self, x, time, cond=None, *, train=False, taps=()):
        h = nn.Conv(self.width, (3, 3))(x)
        h = h + nn.Dense(self.width)(time[:, None] / 100)[:, None, None]
        if cond is not None:
            h = h + nn.Embed(4, self.width)(cond)[:, None, None]
        h = nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(h))
        out = nn.Dense(self.out_channels)(h)
        out = out.astype(jnp.bfloat16) if self.bfloat16 else out
        return (out, {tap: h for tap in taps}) if taps else out


def build(prediction="v", **fields):
    module = Net(**fields)
    inputs = jnp.zeros((1, *IMAGE)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: np.float32(0.4 * rng.normal(size=p.shape)), shapes)
    return Denoiser.from_module(module, params, prediction)


@pytest.fixture(scope="module")
def noisy():
    z = jnp.asarray(np.random.default_rng(1).normal(size=(3, *IMAGE)), jnp.float32)
    return z, cosine(100).at(np.array([1, 50, 90]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("table", [cosine(100), karras(20)], ids=["vp", "ve"])
def test_a_network_of_any_kind_is_the_same_denoiser(kind, table):
    exact = GaussianDenoiser(0.3, 0.5)
    network = exact.as_network(table, kind, sigma_data=0.7)
    level = table.at(np.array([2, 10, 20]))
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, *IMAGE)).astype(np.float32)
    z = add_noise(x0, eps, level)
    for call in (network, jax.jit(lambda z, level, n=network: n(z, level))):
        ours, theirs = call(z, level), exact(z, level)
        np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours.eps, theirs.eps, rtol=1e-3, atol=2e-3)


def test_the_network_is_given_scaled_images_times_per_example_and_the_condition():
    seen = {}

    def apply(params, x, time, cond, **rest):
        seen.update(x=x, time=time, cond=cond, **rest)
        return params * x

    z, cond = jnp.ones((3, *IMAGE)), jnp.arange(3)
    edm = Denoiser(2.0, apply, "edm", 0.5)
    edm(z, Level(jnp.float32(1), jnp.float32(1.2), jnp.float32(7)), cond)
    np.testing.assert_allclose(seen["x"], 1 / 1.3, rtol=1e-6)
    np.testing.assert_array_equal(seen["time"], [7, 7, 7])
    np.testing.assert_array_equal(seen["cond"], [0, 1, 2])
    assert (seen["train"], seen["rngs"], seen["taps"]) == (False, None, ())

    level = cosine(10).at(np.array([1, 5, 9]))
    np.testing.assert_array_equal(Denoiser(2.0, apply, "eps").raw(z, level), 2 * z)
    np.testing.assert_array_equal(seen["x"], z)
    np.testing.assert_array_equal(seen["time"], [0, 4, 8])
    assert seen["cond"] is None


def test_the_answer_is_the_converted_raw_output(noisy):
    z, level = noisy
    denoiser = build("v")
    raw = denoiser.raw(z, level)
    direct = denoiser.apply_fn.module.apply({"params": denoiser.params}, z, level.time)
    np.testing.assert_allclose(raw, direct, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(denoiser(z, level), convert("v", raw, z, level))


def test_dropout_is_on_with_a_key_only(noisy):
    denoiser, keys = build(dropout=0.5), [jax.random.key(2), jax.random.key(3)]
    z, level = noisy
    call = jax.jit(lambda key: denoiser(z, level, key=key).x0)
    runs = [call(k) for k in (None, None, keys[0], keys[0], keys[1])]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[2], runs[3])
    assert np.abs(runs[0] - runs[2]).max() > 1e-3
    assert np.abs(runs[2] - runs[4]).max() > 1e-3


def test_features_come_with_the_same_prediction(noisy):
    denoiser = build(dropout=0.5)
    z, level = noisy
    for key in (None, jax.random.key(3)):
        prediction, features = denoiser.with_features(["mid", "last"])(z, level, key=key)
        chex.assert_trees_all_equal(prediction, denoiser(z, level, key=key))
        assert set(features) == {"mid", "last"}
        chex.assert_shape(features["mid"], (3, 4, 4, 3))


def test_a_denoiser_is_a_pytree_of_its_parameters_only(noisy):
    z, level = noisy
    denoiser = build()
    chex.assert_trees_all_equal(jax.tree.leaves(denoiser), jax.tree.leaves(denoiser.params))
    traces = []

    @jax.jit
    def call(denoiser):
        traces.append(1)
        return denoiser(z, level).x0

    doubled = jax.tree.map(lambda p: 2 * p, denoiser)
    # An equal module built elsewhere is the same function: no second compilation.
    elsewhere = build().replace(params=denoiser.params)
    np.testing.assert_array_equal(call(denoiser), call(elsewhere))
    assert np.abs(call(doubled) - call(denoiser)).max() > 1e-3
    assert len(traces) == 1
    call(denoiser.replace(prediction="eps"))
    assert len(traces) == 2
    assert ModuleApply(Net()) == ModuleApply(Net()) != ModuleApply(Net(width=4))


def test_gradients_reach_the_parameters(noisy):
    z, level = noisy

    def loss(denoiser):
        return jnp.mean(denoiser(z, level, jnp.arange(3)).x0 ** 2)

    gradient = jax.jit(jax.grad(loss))(build())
    chex.assert_tree_all_finite(gradient)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient.params))


def test_clip_bounds_x0_and_keeps_z(noisy):
    z, level = noisy
    free, bound = build()(z, level), build().replace(clip=0.1)(z, level)
    assert np.abs(free.x0).max() > 0.1
    np.testing.assert_allclose(bound.x0, np.clip(free.x0, -0.1, 0.1), rtol=1e-6)
    np.testing.assert_allclose(add_noise(bound.x0, bound.eps, level), z, rtol=1e-4, atol=1e-6)


def test_bfloat16_outputs_are_converted_in_float32(noisy):
    z, level = noisy
    said = build("eps", bfloat16=True)(z, level)
    assert said.x0.dtype == said.eps.dtype == jnp.float32
    recomposed = add_noise(said.x0, said.eps, level)
    np.testing.assert_allclose(recomposed, z, atol=1e-5)  # bfloat16 would be off by 1e-2


def test_a_wrong_number_of_channels_is_named(noisy):
    z, level = noisy
    with pytest.raises(ValueError, match=r"\(3, 4, 4, 1\).*\(3, 4, 4, 2\).*out_channels"):
        build(out_channels=1)(z, level)


def test_an_unknown_prediction_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'edm'"):
        Denoiser.from_module(Net(), {}, "edn")
