"""The forms of a convolution agree, one student at a time and vmapped over students."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddistill.networks import build
from ddistill.networks.convolution import Conv, for_platform
from ddistill.networks.ungrouped import ungrouped_conv, xla_conv

K = 3


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 8, 6, 5), (1, 7, 9, 3)])
def test_convolutions_agree(size, stride, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    xla, *others = (Conv(4, size, stride, impl=impl) for impl in ("xla", "matmul", "ungrouped"))
    params = xla.init(jax.random.key(1), x)
    for conv in others:
        np.testing.assert_allclose(conv.apply(params, x), xla.apply(params, x), atol=1e-5)


@pytest.mark.parametrize("impl", ["auto", "matmul", "ungrouped"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (1, 3, 1, 3)])
def test_a_doubled_image_is_convolved_in_quarters(impl, shape):
    """Values and gradients are those of the convolution of the doubled image."""
    x = jax.random.normal(jax.random.key(0), shape)
    plain, quarters = (Conv(4, impl=i, upsampled=True) for i in ("xla", impl))
    params = plain.init(jax.random.key(1), x)

    def both(conv):
        def loss(params, x):
            y = conv.apply(params, x)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

    expected = both(plain)
    assert expected[0][1].shape == (shape[0], 2 * shape[1], 2 * shape[2], 4)
    for a, b in zip(jax.tree.leaves(both(quarters)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_quarters_in_bfloat16_round_kernels_once():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 32))
    exact = Conv(32, impl="xla", upsampled=True)
    params = exact.init(jax.random.key(1), x)

    def error(impl):
        rough = Conv(32, impl=impl, upsampled=True, dtype="bfloat16").apply(params, x)
        apart = jnp.float32(rough) - exact.apply(params, x)
        return float(jnp.sqrt(jnp.mean(jnp.square(apart))))

    assert error("auto") < 1.2 * error("xla")


def test_quarters_take_four_ninths_of_the_operations():
    x, params = jnp.zeros((2, 8, 8, 16)), {}
    count = {}
    for impl in ("xla", "auto"):
        conv = Conv(16, impl=impl, upsampled=True)
        params = params or conv.init(jax.random.key(0), x)
        compiled = jax.jit(conv.apply).lower(params, x).compile()
        count[impl] = compiled.cost_analysis()["flops"]
    assert count["auto"] / count["xla"] == pytest.approx(4 / 9, rel=0.15)


def operands(size=3, dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), (K, 2, 8, 6, 4), dtype)
    kernel = jax.random.normal(jax.random.key(1), (K, size, size, 4, 5), dtype)
    return x, kernel


def both(convolve, stride, axes=(0, 0)):
    """Values and gradients of every student's convolution."""

    def loss(x, kernel):
        y = convolve(x, kernel, stride)
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1), has_aux=True), axes))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_vmapped_over_students_values_and_gradients_agree(stride, axes):
    x, kernel = (a if axis == 0 else a[0] for a, axis in zip(operands(), axes))
    found, expected = (both(c, stride, axes)(x, kernel) for c in (ungrouped_conv, xla_conv))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_no_grouped_convolution_is_left():
    grouped, plain = (
        both(c, 1).lower(*operands()).as_text().replace(" ", "") for c in (xla_conv, ungrouped_conv)
    )
    assert f"feature_group_count={K}" in grouped
    for text in (f"feature_group_count={K}", f"batch_group_count={K}"):
        assert text not in plain
    # The forward pass and the gradients by image and by kernel, of each student.
    assert plain.count("stablehlo.convolution") == 3 * K


def test_vmapped_twice_it_still_agrees():
    x, kernel = (jnp.stack([a, a[::-1]]) for a in operands())
    found, expected = (
        jax.vmap(jax.vmap(lambda x, k, c=c: c(x, k, 1)))(x, kernel)
        for c in (ungrouped_conv, xla_conv)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_gradients_of_gradients_agree():
    x, kernel = operands()

    def penalty(convolve):
        def slope(x, kernel):
            return jax.grad(lambda x: jnp.sum(jnp.sin(convolve(x, kernel, 1))))(x)

        return jax.vmap(jax.grad(lambda x, k: jnp.sum(jnp.square(slope(x, k))), (0, 1)))

    found, expected = (penalty(c)(x, kernel) for c in (ungrouped_conv, xla_conv))
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_derivatives_of_forward_mode_agree():
    """Alone, and differentiated again by reverse mode."""
    operands_, along = operands(), [a[::-1] for a in operands()]

    def slopes(convolve):
        def slope(x, kernel, dx, dk):
            return jax.jvp(lambda x, k: jnp.sin(convolve(x, k, 1)), (x, kernel), (dx, dk))[1]

        def loss(*given):
            return jnp.sum(jnp.square(slope(*given)))

        mapped = jax.vmap(lambda *given: (slope(*given), jax.grad(loss, (0, 1))(*given)))
        return jax.jit(mapped)(*operands_, *along)

    found, expected = slopes(ungrouped_conv), slopes(xla_conv)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_only_an_automatic_choice_is_changed():
    options = {"channels": 8, "multipliers": (1,), "norm_groups": 4, "out_channels": 1}
    unet, chosen = build("unet", **options), build("unet", conv_impl="matmul", **options)
    found = {
        (platform, vmapped): for_platform(unet, platform, vmapped).conv_impl
        for platform in ("cpu", "gpu", "tpu")
        for vmapped in (False, True)
    }
    assert found == {
        ("cpu", False): "auto",
        ("cpu", True): "ungrouped",
        ("gpu", False): "auto",
        ("gpu", True): "ungrouped",
        ("tpu", False): "xla",
        ("tpu", True): "xla",
    }
    assert for_platform(chosen, "tpu", True) is chosen
    resnet = build("resnet", num_classes=3)
    assert for_platform(resnet, "gpu", True) is resnet
