"""The U-Net: sizes, conditioning, taps, and the equalities that its options promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddistill.errors import ConfigError
from ddistill.networks import build
from ddistill.networks.convolution import Conv, upsample
from ddistill.networks.layers import Attention, GroupNorm, downsample, sinusoidal_embedding

TINY = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "norm_groups": 4,
    "out_channels": 3,
}


def tiny(**options):
    return build("unet", **{**TINY, **options})


def small(**options):
    """One level and no attention beside the middle: quick to compile with its gradient."""
    return tiny(multipliers=(1,), attention=(), **options)


def inputs(batch=2, size=8, channels=3):
    x = jax.random.normal(jax.random.key(7), (batch, size, size, channels))
    return x, jnp.linspace(3.0, 900.0, batch)


def fill(shapes, seed=0):
    """Random values for every parameter, so that nothing is hidden behind a zero initialisation."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape) + 0.1, jnp.float32), shapes
    )


def init(module):
    """Random parameters of the module, without compiling its initialisers."""
    return fill(jax.eval_shape(module.init, jax.random.key(0), *inputs(1))["params"])


# Compiling is what takes the time here, so most of its optimisations are off.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("train", "taps"), compiler_options=QUICK
)
def apply(module, params, *args, **kwargs):
    return module.apply({"params": params}, *args, **kwargs)


@pytest.fixture(scope="module")
def net():
    module = tiny()
    return module, init(module)


@pytest.fixture(scope="module")
def conditional():
    module = tiny(num_classes=5)
    return module, init(module)


# --- sizes


def count(size=32, image=3, **options):
    shapes = jax.eval_shape(
        build("unet", **options).init,
        jax.random.key(0),
        jnp.zeros((1, size, size, image)),
        jnp.zeros((1,)),
    )
    return sum(p.size for p in jax.tree.leaves(shapes["params"]))


def count_by_hand(width, multipliers, blocks, attention, image=3, size=32):
    """Parameters of DDPM's U-Net, added up from its description."""

    def conv(a, b, k=3):
        return k * k * a * b + b

    def res(a, b):
        shortcut = conv(a, b, 1) if a != b else 0
        return 2 * a + conv(a, b) + conv(4 * width, b, 1) + 2 * b + conv(b, b) + shortcut

    def attend(a):
        return 2 * a + 4 * conv(a, a, 1)

    total = conv(width, 4 * width, 1) + conv(4 * width, 4 * width, 1) + conv(image, width)
    now, skips, last = width, [width], len(multipliers) - 1
    for i, mult in enumerate(multipliers):
        for _ in range(blocks):
            total += res(now, mult * width) + (attend(mult * width) if size in attention else 0)
            now = mult * width
            skips.append(now)
        if i != last:
            total += conv(now, now)
            skips.append(now)
            size //= 2
    total += 2 * res(now, now) + attend(now)
    for i, mult in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            total += res(now + skips.pop(), mult * width)
            total += attend(mult * width) if size in attention else 0
            now = mult * width
        if i:
            total += conv(now, now)
            size *= 2
    return total + 2 * now + conv(now, image)


@pytest.mark.parametrize(("width", "millions"), [(128, 35.75), (96, 20.12), (64, 8.95)])
def test_parameter_count_of_the_cifar_network(width, millions):
    """35,746,307 is also what diffusers' google/ddpm-cifar10-32 has.

    pytorch-ddpm, CFD's teacher, trains the same number and stores a frozen lookup table of 1000
    (CFD: 1025) rows of 128 sinusoids on top. 35.72 M, quoted for SFDDM, is another architecture.
    """
    ours = count(channels=width)
    assert ours == count_by_hand(width, (1, 2, 2, 2), 2, (16,))
    assert round(ours / 1e6, 2) == millions
    if width == 128:
        assert ours == 35_746_307


def test_parameter_count_of_other_shapes():
    options = {"channels": 24, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    ours = count(8, 1, **options, norm_groups=8, out_channels=1)
    assert ours == count_by_hand(24, (1, 2), 1, (4,), image=1, size=8)


@pytest.mark.parametrize("options", [{}, {"resample": "resblock"}])
@pytest.mark.parametrize("shape", [(8, 8), (4, 12)])
def test_output_has_the_size_of_the_input(options, shape):
    module = tiny(attention=(), mid_attention=False, out_channels=2, **options)
    x = jax.ShapeDtypeStruct((2, *shape, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, t)
    assert out.shape == (2, *shape, 2)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({"multipliers": (1, 2, 2)}, (1, 10, 8, 3), ["10 x 8", "divide by 4", "8 or 12"]),
        ({"multipliers": (1, 1, 1, 1)}, (1, 4, 4, 3), ["divide by 8", "Use 8 or 8"]),
        ({"attention": (16,)}, (1, 8, 8, 3), ["attention=(16,)", "[8, 4]"]),
        ({"norm_groups": 3}, (1, 8, 8, 3), ["norm_groups=3", "8 channels", "[1, 2, 4, 8]"]),
        # 80 is not divisible by 32, nor are the concatenated skips.
        ({"channels": 80, "norm_groups": 32}, (1, 8, 8, 3), ["norm_groups=32", "80 channels"]),
        ({"head_dim": 7}, (1, 8, 8, 3), ["head_dim=7", "16 channels"]),
        ({}, (8, 8, 3), ["[B, H, W, C]"]),
    ],
)
def test_shapes_that_do_not_fit_fail_before_compiling(options, shape, words):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(tiny(**options).init, jax.random.key(0), x, t)
    for word in words:
        assert word in str(error.value)


# --- conditioning


def test_fresh_network_says_zero_and_blocks_are_identities_on_equal_channels():
    module = tiny(multipliers=(1,), attention=(8,))
    x, t = inputs()
    params = jax.jit(module.init, compiler_options=QUICK)(jax.random.key(0), x, t)["params"]
    out, features = apply(module, params, x, t, taps=("mid",))
    np.testing.assert_array_equal(out, jnp.zeros_like(x))
    stem = Conv(8).apply({"params": params["conv_in"]}, x)
    np.testing.assert_allclose(features["mid"], stem, atol=1e-6)


def test_time_matters_and_is_real_valued(net):
    module, params = net
    x, _ = inputs()
    outs = [apply(module, params, x, jnp.full((2,), t)) for t in (10.0, 10.4, 11.0)]
    assert np.abs(outs[0] - outs[1]).max() > 1e-3
    assert np.abs(outs[0] - outs[2]).max() > 1e-3
    integer = apply(module, params, x, jnp.full((2,), 10, jnp.int32))
    np.testing.assert_array_equal(integer, outs[0])


def test_time_scale_multiplies_the_time(net):
    module, params = net
    x, t = inputs()
    np.testing.assert_allclose(
        apply(tiny(time_scale=4.0), params, x, t / 4), apply(module, params, x, t), atol=1e-6
    )


def test_sinusoidal_embedding_matches_numpy():
    times = np.array([-1.0, 0.0, 0.37, 999.0])
    ours = sinusoidal_embedding(jnp.asarray(times), 6)
    frequencies = 10000.0 ** (-np.arange(3) / 2)
    angles = times[:, None] * frequencies
    np.testing.assert_allclose(ours, np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=2e-4)
    np.testing.assert_allclose(ours[:3, 3:], np.cos(angles)[:3], atol=1e-6)


def test_no_class_means_the_null_class(conditional):
    module, params = conditional
    x, t = inputs()
    null = apply(module, params, x, t, jnp.full((2,), 5))
    np.testing.assert_array_equal(apply(module, params, x, t), null)
    np.testing.assert_array_equal(apply(module, params, x, t, None), null)
    assert params["class"]["embedding"].shape == (6, 32)
    for label in (0, 4):
        other = apply(module, params, x, t, jnp.full((2,), label))
        assert np.abs(other - null).max() > 1e-3


def test_classes_are_per_example(conditional):
    module, params = conditional
    x, t = inputs()
    mixed = apply(module, params, x, t, jnp.array([1, 5]))
    for i, label in enumerate((1, 5)):
        same = apply(module, params, x, t, jnp.full((2,), label))
        np.testing.assert_allclose(mixed[i], same[i], rtol=1e-5, atol=1e-5)


def test_unconditional_network_refuses_classes(net):
    module, params = net
    with pytest.raises(ConfigError, match="num_classes=0"):
        apply(module, params, *inputs(), jnp.zeros((2,), jnp.int32))


def test_scale_shift_reduces_to_no_conditioning():
    """With the time projection at zero, scale-shift is the identity and time has no effect."""
    module = small(time_conditioning="scale_shift")
    params = init(module)
    x, t = inputs()
    assert np.abs(apply(module, params, x, t) - apply(module, params, x, t + 50)).max() > 1e-3
    silent = jax.tree_util.tree_map_with_path(
        lambda path, p: p * 0 if path[-2].key == "time" else p, params
    )
    np.testing.assert_array_equal(apply(module, silent, x, t), apply(module, silent, x, t + 50))


def test_examples_do_not_mix(net):
    module, params = net
    x, t = inputs(3)
    together = apply(module, params, x, t)
    alone = apply(module, params, x[1:2], t[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_dropout_only_in_training():
    module = small(dropout=0.5)
    params = init(module)
    x, t = inputs()

    def run(train, seed):
        return apply(module, params, x, t, train=train, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    np.testing.assert_array_equal(run(False, 0), apply(small(), params, x, t))
    assert np.abs(run(True, 0) - run(True, 1)).max() > 1e-3


# --- taps


def test_taps_have_the_documented_shapes_and_do_not_change_the_output(net):
    module, params = net
    x, t = inputs()
    names = ("mid", "up_0", "up_1", "last")
    out, features = apply(module, params, x, t, taps=names)
    np.testing.assert_array_equal(out, apply(module, params, x, t))
    shapes = {name: feature.shape for name, feature in features.items()}
    assert shapes == {
        "mid": (2, 4, 4, 16),
        "up_0": (2, 4, 4, 16),
        "up_1": (2, 8, 8, 8),
        "last": (2, 8, 8, 8),
    }


def test_last_tap_is_what_enters_the_last_convolution(net):
    module, params = net
    x, t = inputs()
    out, features = apply(module, params, x, t, taps=("last", "up_1"))
    conv = Conv(3).apply({"params": params["conv_out"]}, features["last"])
    np.testing.assert_allclose(conv, out, rtol=1e-5, atol=1e-5)
    norm = GroupNorm(4, module.norm_eps).apply(
        {"params": params["norm_out"]}, features["up_1"], silu=True
    )
    np.testing.assert_allclose(norm, features["last"], rtol=1e-5, atol=1e-5)


def test_unknown_tap_is_refused(net):
    module, params = net
    with pytest.raises(ConfigError, match=r"Did you mean 'up_1'\?|Did you mean 'up_0'\?"):
        apply(module, params, *inputs(), taps=("up_7",))


# --- options that may not change the result


def loss_and_gradient(module, params, x, t):
    def loss(params):
        return jnp.mean(jnp.square(module.apply({"params": params}, x, t) - 0.5 * x))

    return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)


def assert_trees_close(a, b, tolerance):
    for (path, p), q in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        scale = np.abs(q).max() + 1e-6
        np.testing.assert_allclose(p / scale, q / scale, atol=tolerance, err_msg=str(path))


@pytest.fixture(scope="module")
def reference():
    module = small(conv_impl="xla")
    params = init(module)
    return params, *loss_and_gradient(module, params, *inputs())


@pytest.mark.parametrize("options", [{"remat": True}, {"conv_impl": "ungrouped"}])
def test_remat_and_convolution_choice_change_nothing(reference, options):
    params, expected, expected_gradient = reference
    loss, gradient = loss_and_gradient(small(**options), params, *inputs())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_trees_close(gradient, expected_gradient, 2e-5)


def test_remat_recomputes_dropout_with_the_same_mask():
    x, t = inputs()
    params = init(small())

    def gradient(remat):
        module = small(dropout=0.5, remat=remat)
        rngs = {"dropout": jax.random.key(3)}

        def loss(params):
            out = module.apply({"params": params}, x, t, train=True, rngs=rngs)
            return jnp.mean(jnp.square(out))

        return jax.jit(jax.grad(loss), compiler_options=QUICK)(params)

    assert_trees_close(gradient(True), gradient(False), 2e-5)


@pytest.mark.parametrize("options", [{}, {"time_conditioning": "scale_shift", "num_classes": 3}])
def test_bfloat16_is_close_and_keeps_float32_where_promised(options):
    module, half = small(**options), small(dtype="bfloat16", **options)
    params = jax.tree.map(lambda p: 0.5 * p, init(module))
    x, t = inputs()
    exact, features = apply(module, params, x, t, taps=("mid",))
    rough, rough_features = apply(half, params, x, t, taps=("mid",))
    assert rough.dtype == jnp.float32
    assert rough_features["mid"].dtype == jnp.bfloat16
    assert features["mid"].dtype == jnp.float32
    shapes = jax.eval_shape(half.init, jax.random.key(0), x, t)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes))
    error = np.abs(rough - exact).mean() / np.abs(exact).mean()
    assert 0 < error < 0.05


# --- layers against numpy


def test_group_norm_matches_numpy_in_float64():
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 4, 6, 12)).astype(np.float32)
    params = {"scale": np.linspace(0.5, 2, 12), "bias": np.linspace(-1, 1, 12)}
    ours = GroupNorm(3, 1e-5).apply({"params": params}, x)
    grouped = x.astype(np.float64).reshape(2, 24, 3, 4)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    theirs = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(ours, theirs * params["scale"] + params["bias"], atol=1e-5)


def test_group_norm_statistics_survive_a_large_mean():
    """E[x^2] - E[x]^2 in float32 would lose the variance of 1 beside a mean of 10,000."""
    x = np.random.default_rng(0).normal(1e4, 1.0, (1, 8, 8, 4)).astype(np.float32)
    ours = GroupNorm(1, 1e-6).apply({"params": {"scale": np.ones(4), "bias": np.zeros(4)}}, x)
    np.testing.assert_allclose(np.std(ours), 1.0, rtol=1e-3)


@pytest.mark.parametrize("head_dim", [0, 4])
def test_attention_matches_numpy(head_dim):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 2, 3, 8)).astype(np.float32)
    module = Attention(head_dim, 2, 1e-6)
    params = fill(jax.eval_shape(module.init, jax.random.key(0), x)["params"], 5)
    ours = module.apply({"params": params}, x)

    flat = x.reshape(2, 6, 8).astype(np.float64)
    grouped = flat.reshape(2, 6, 2, 4)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    h = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(flat.shape)
    h = h * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])
    qkv = h @ np.asarray(params["qkv"]["kernel"])[0, 0] + np.asarray(params["qkv"]["bias"])
    out = np.zeros_like(flat)
    width = head_dim or 8
    for b in range(2):
        for start in range(0, 8, width):
            head = slice(start, start + width)
            q, k, v = (qkv[b, :, 8 * i : 8 * i + 8][:, head] for i in range(3))
            weights = np.exp(q @ k.T / np.sqrt(width))
            out[b, :, head] = weights / weights.sum(1, keepdims=True) @ v
    out = out @ np.asarray(params["out"]["kernel"])[0, 0] + np.asarray(params["out"]["bias"])
    np.testing.assert_allclose(ours, x + out.reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_resampling_is_mean_and_nearest_neighbour():
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    up = upsample(x)
    assert up.shape == (2, 8, 12, 3)
    np.testing.assert_array_equal(up, np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))
    np.testing.assert_allclose(downsample(up), x)
    np.testing.assert_allclose(
        downsample(x)[0, 0, 0], (x[0, 0, 0] + x[0, 0, 1] + x[0, 1, 0] + x[0, 1, 1]) / 4
    )
