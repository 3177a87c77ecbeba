"""Attention in chunks: the same numbers, and never the scores of all pairs of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddistill.conditions import TextCondition
from ddistill.interop.text_unet_weights import parameter_shapes
from ddistill.networks import attention
from ddistill.networks.attention import attend
from ddistill.networks.autoencoder_kl import AutoencoderKL
from ddistill.networks.text_unet import TextUNet


def given(queries, keys, heads=2, head=8):
    rng = np.random.default_rng(0)
    shapes = ((2, queries, heads, head), (2, keys, heads, head), (2, keys, heads, head))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def textbook(q, k, v, causal):
    scores = np.einsum("bqhd,bkhd->bhqk", *(np.asarray(x, np.float64) for x in (q, k)))
    scores = scores / np.sqrt(q.shape[-1])
    if causal:
        scores[..., np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("most", [2 * 13 * 1, 2 * 13 * 5, 2 * 13 * 100])
def test_chunks_of_any_size_give_the_same(monkeypatch, most, causal):
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    q, k, v = given(13, 13)
    found = attend(q, k, v, causal=causal)
    np.testing.assert_allclose(found, textbook(q, k, v, causal), atol=1e-5)


def test_gradients_of_chunks_are_those_of_the_whole(monkeypatch):
    tensors = given(7, 5)

    def loss(*x):
        return jnp.sum(jnp.sin(attend(*x)))

    whole = jax.grad(loss, (0, 1, 2))(*tensors)
    monkeypatch.setattr(attention, "MOST_SCORES", 2 * 5 * 3)
    for ours, wanted in zip(jax.grad(loss, (0, 1, 2))(*tensors), whole):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_scores_of_bfloat16_are_float32_and_upcast_asks_for_all_digits_of_float32():
    q, k, v = given(4, 4)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    assert attend(*half).dtype == jnp.bfloat16
    products = [e for e in equations(jax.make_jaxpr(attend)(*half)) if "dot" in str(e.primitive)]
    assert products[0].outvars[0].aval.dtype == jnp.float32

    def precision(upcast):
        made = equations(jax.make_jaxpr(lambda *x: attend(*x, upcast=upcast))(q, k, v))
        return next(e for e in made if "dot" in str(e.primitive)).params["precision"]

    assert precision(False) is None
    assert precision(True) == (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize(
    "head, dtype, capability, wanted",
    [
        (40, "bfloat16", "8.0", "cudnn"),
        (128, "bfloat16", "9.0", "cudnn"),
        (160, "bfloat16", "9.0", "chunked"),
        (40, "float32", "9.0", "chunked"),
        (36, "bfloat16", "9.0", "chunked"),
        (40, "bfloat16", "7.5", "chunked"),
    ],
)
def test_the_fused_kernel_is_chosen_where_gpus_have_it(
    monkeypatch, head, dtype, capability, wanted
):
    class Gpu:
        compute_capability = capability

    q = jax.ShapeDtypeStruct((1, 4, 1, head), dtype)
    assert attention._implementation("auto", q) == "chunked"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Gpu()])
    assert attention._implementation("auto", q) == wanted
    assert attention._implementation("cudnn", q) == "cudnn"


# ------------------------------------------------------------------------------------- memory


def equations(jaxpr):
    """All equations of a program, also of programs inside it."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in inner.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                    yield from equations(part)


def largest_array(program, *given):
    """The number of entries of the largest array that a program makes."""
    made = jax.make_jaxpr(program)(*given)
    found = [v.aval for e in equations(made) for v in e.outvars]
    return max(np.prod(a.shape) for a in found if hasattr(a, "shape"))


def test_latents_of_64_x_64_make_no_matrix_of_all_scores_in_a_training_step():
    net = TextUNet(widths=(32, 32), blocks=(1,), attends=(0,), heads=(8,), context_dim=8)
    text = TextCondition(jnp.zeros((1, 77, 8)), jnp.zeros((1, 8)))

    def loss(params, z):
        return jnp.sum(jnp.square(net.apply({"params": params}, z, jnp.zeros(1), text)))

    largest = largest_array(jax.grad(loss), parameter_shapes(net, 4), jnp.zeros((1, 64, 64, 4)))
    # The scores of a chunk: 256 of 4,096 queries of 8 heads.
    assert largest == 8 * 256 * 4096


def test_pictures_of_512_x_512_are_decoded_without_the_matrix_of_all_scores():
    net = AutoencoderKL(widths=(4, 4, 4, 4), blocks=1, norm_groups=2, conv_impl="xla")
    picture, latent = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 64, 64, 4))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), picture))["params"]

    def decode(params, z):
        return net.apply({"params": params}, z, method="decode")

    assert largest_array(decode, params, latent) == 2048 * 4096
