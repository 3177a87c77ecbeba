"""The networks of EDM's teachers: sizes, conditioning, taps, and what their options promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddistill.errors import ConfigError
from ddistill.networks import build
from ddistill.networks.convolution import Conv
from ddistill.networks.edm_blocks import class_vector
from ddistill.networks.resampling import filter_down, filter_up

# Compiling is what takes the time here, so most of its optimisations are off.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

SONG = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
NCSN = {
    "embedding": "fourier",
    "encoder": "residual",
    "noise_multiplier": 2,
    "resample_filter": (1, 3, 3, 1),
}
ADM = {**SONG, "head_dim": 4}


def tiny(name, **options):
    return build(name, **{**(ADM if name == "dhariwal" else SONG), **options})


def inputs(batch=2):
    x = jax.random.normal(jax.random.key(7), (batch, 8, 8, 3))
    return x, jnp.linspace(-1.5, 1.0, batch)


def init(net, seed=0):
    """Random parameters, so that nothing is hidden behind a zero initialisation."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs(1))["params"]
    return jax.tree.map(
        lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape) + 0.1, jnp.float32), shapes
    )


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("train", "taps"), compiler_options=QUICK
)
def apply(net, params, *args, **kwargs):
    return net.apply({"params": params}, *args, **kwargs)


# ----------------------------------------------------------------------------------------- sizes


def count(name, size, **options):
    shapes = jax.eval_shape(
        build(name, **options).init,
        jax.random.key(0),
        jnp.zeros((1, size, size, 3)),
        jnp.zeros((1,)),
    )
    return sum(p.size for p in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("name", "size", "options", "millions"),
    [
        ("song", 32, {"augment_dim": 9}, 55.7),
        ("song", 32, {"augment_dim": 9, "num_classes": 10}, 55.7),
        ("dhariwal", 64, {"num_classes": 1000}, 295.9),
    ],
)
def test_sizes_are_those_that_edm_publishes(name, size, options, millions):
    """arXiv 2206.00364 appendix F: CIFAR-10 without and with classes, and ImageNet-64."""
    assert round(count(name, size, **options) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("song", {"embedding": "sine"}, ["embedding='sine'", "positional"]),
        ("song", {"encoder": "residul"}, ["Did you mean 'residual'?"]),
        ("song", {"decoder": "residual"}, ["decoder='residual'", "skip, standard"]),
        ("song", {"resample_filter": (1, 2, 1)}, ["resample_filter=(1, 2, 1)", "(1, 3, 3, 1)"]),
        ("song", {"noise_multiplier": 0}, ["noise_multiplier=0"]),
        ("song", {"augment_dim": -1}, ["augment_dim=-1"]),
        ("song", {"dropout": 1.5}, ["dropout=1.5"]),
        ("song", {"chanels": 8}, ["Did you mean 'channels'?"]),
        ("dhariwal", {"head_dim": 0}, ["head_dim=0"]),
        ("dhariwal", {"encoder": "skip"}, ["network.encoder is not a field"]),
    ],
)
def test_options_that_cannot_work_are_refused(name, options, words):
    with pytest.raises(ConfigError) as error:
        build(name, **options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["song", "dhariwal"])
def test_images_that_do_not_fit_are_refused(name):
    net = tiny(name)
    for shape, words in (((1, 7, 8, 3), "divide by 2"), ((1, 16, 16, 3), "attention=")):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        with pytest.raises(ConfigError, match=words):
            jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1))
    with pytest.raises(ConfigError, match="num_classes=0"):
        jax.eval_shape(net.init, jax.random.key(0), *inputs(), jnp.zeros(2, jnp.int32))


# ---------------------------------------------------------------------------------- conditioning


@pytest.mark.parametrize("name", ["song", "dhariwal"])
def test_taps_have_the_sizes_of_the_levels(name):
    names = ("down_0", "down_1", "mid", "up_0", "up_1", "last")
    net = tiny(name)
    run = functools.partial(net.init_with_output, taps=names)
    (out, features), _ = jax.eval_shape(run, jax.random.key(0), *inputs())
    assert (out.shape, out.dtype) == ((2, 8, 8, 3), jnp.float32)
    assert {n: f.shape[1:] for n, f in features.items()} == {
        "down_0": (8, 8, 8),
        "down_1": (4, 4, 16),
        "mid": (4, 4, 16),
        "up_0": (4, 4, 16),
        "up_1": (8, 8, 8),
        "last": (8, 8, 8),
    }
    with pytest.raises(ConfigError, match="feature tap='up_2'"):
        jax.eval_shape(functools.partial(net.init, taps=("up_2",)), jax.random.key(0), *inputs())


@pytest.mark.parametrize("name", ["song", "dhariwal"])
def test_classes_and_dropout(name):
    net = tiny(name, multipliers=(1,), attention=(), num_classes=3, dropout=0.5)
    params, (x, time) = init(net), inputs()
    out, features = apply(net, params, x, time, jnp.array([3, 3]), taps=("last",))
    # No class is the null class, and every class is another.
    null = apply(net, params, x, time)
    np.testing.assert_allclose(null, out, rtol=1e-4, atol=1e-4)
    for label in range(3):
        other, _ = apply(net, params, x, time, jnp.array([label, 3]), taps=("last",))
        assert np.abs(other[0] - out[0]).max() > 1e-3
        np.testing.assert_allclose(other[1], out[1], rtol=1e-4, atol=1e-4)
    # The last tap is what enters the last convolution.
    last = Conv(3).apply({"params": params["conv_out"]}, features["last"])
    np.testing.assert_allclose(last, out, rtol=1e-4, atol=1e-4)
    rngs = {"dropout": jax.random.key(0)}
    assert np.abs(apply(net, params, x, time, train=True, rngs=rngs) - out).max() > 1e-3


@pytest.mark.parametrize("name", ["song", "dhariwal"])
def test_fresh_networks_say_zero(name):
    net = tiny(name, multipliers=(1,), attention=())
    run = jax.jit(net.init_with_output, compiler_options=QUICK)
    out, _ = run(jax.random.key(0), *inputs())
    np.testing.assert_array_equal(out, np.zeros_like(out))


def test_class_vector():
    time = jnp.zeros(3)
    np.testing.assert_array_equal(
        class_vector(jnp.array([1, 0, 2]), time, 2), [[0, 1], [1, 0], [0, 0]]
    )
    np.testing.assert_array_equal(class_vector(None, time, 2), np.zeros((3, 2)))


def test_frequencies_are_not_trained():
    net = tiny("song", **{**NCSN, "multipliers": (1,), "attention": ()})
    params, (x, time) = init(net), inputs()

    def loss(params):
        return jnp.sum(jnp.square(net.apply({"params": params}, x, time)))

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
    np.testing.assert_array_equal(gradient["frequencies"], np.zeros(8))
    others = {k: v for k, v in gradient.items() if k != "frequencies"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(others):
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("options", [{"remat": True}, {"conv_impl": "ungrouped"}])
def test_options_without_an_effect_on_the_result(options):
    args = inputs()
    small = functools.partial(tiny, "song", multipliers=(1,), attention=())
    params = init(small())
    expected = apply(small(conv_impl="xla"), params, *args)
    np.testing.assert_allclose(apply(small(**options), params, *args), expected, rtol=1e-4)


@pytest.mark.parametrize(("name", "options"), [("song", NCSN), ("dhariwal", {"num_classes": 3})])
def test_bfloat16_is_close(name, options):
    net = tiny(name, multipliers=(1,), attention=(), **options)
    params, args = jax.tree.map(lambda p: 0.5 * p, init(net)), inputs()
    exact = apply(net, params, *args)
    rough, features = apply(net.clone(dtype="bfloat16"), params, *args, taps=("mid",))
    assert rough.dtype == jnp.float32
    assert features["mid"].dtype == jnp.bfloat16
    assert 0 < np.abs(rough - exact).mean() / np.abs(exact).mean() < 0.1


# ------------------------------------------------------------------------------------ resampling


def by_hand(x, taps, up):
    """One row resampled as the definition says, in float64."""
    taps = np.asarray(taps, np.float64) / sum(taps)
    reach = len(taps) // 2 - 1
    if not up:
        padded = np.concatenate([np.zeros(reach), x, np.zeros(reach)])
        return np.array([taps @ padded[i : i + len(taps)] for i in range(0, len(x), 2)])
    out = np.zeros(2 * len(x) + 2 * reach)
    for i, value in enumerate(x):
        out[2 * i : 2 * i + len(taps)] += 2 * taps * value
    return out[reach : len(out) - reach]


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("up", [False, True])
def test_filters_match_their_definition(taps, up):
    rng = np.random.default_rng(0)
    rows, columns = rng.normal(size=6), rng.normal(size=4)
    x = np.outer(rows, columns)[None, :, :, None].astype(np.float32)
    ours = (filter_up if up else filter_down)(x, taps)
    expected = np.outer(by_hand(rows, taps, up), by_hand(columns, taps, up))
    np.testing.assert_allclose(ours[0, :, :, 0], expected, atol=1e-6)


def test_filters_without_padding_are_those_with_it_inside():
    x = np.random.default_rng(0).normal(size=(1, 10, 6, 2)).astype(np.float32)
    whole = filter_down(x, (1, 3, 3, 1))
    inner = filter_down(x[:, 1:-1, 1:-1], (1, 3, 3, 1), pad=False)
    np.testing.assert_allclose(inner, whole[:, 1:-1, 1:-1], atol=1e-6)
