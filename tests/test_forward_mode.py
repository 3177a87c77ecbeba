"""Forward-mode derivatives of networks and denoisers against central differences in float64."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ddistill import networks
from ddistill.conditions import Tokens
from ddistill.denoiser import Denoiser, forward_mode
from ddistill.networks import attention
from ddistill.networks.convolution import for_platform
from ddistill.partitions import timestep_partition
from ddistill.schedules import Level, cosine
from ddistill.students import RoutedDenoiser, stack
from ddistill.wrapped_denoiser import ClippedDenoiser, GuidedDenoiser

SIDE, COUNT, STUDENTS = 4, 2, 2
EXTRAS = ("end_time", "guidance")
FLAT = {
    "channels": 8,
    "multipliers": (1,),
    "blocks": 1,
    "attention": (SIDE,),
    "out_channels": 1,
    "extras": EXTRAS,
}
UNET = {**FLAT, "norm_groups": 4, "num_classes": 3, "mid_attention": False}
TEXT = {
    "widths": (8,),
    "blocks": (1,),
    "attends": (0,),
    "heads": (2,),
    "context_dim": 8,
    "out_channels": 1,
    "norm_groups": 4,
}
NETWORKS = {
    "unet": (
        "unet",
        {
            **{**UNET, "multipliers": (1, 1), "attention": (2,), "remat": True},
            **{"resample": "resblock", "time_conditioning": "scale_shift"},
        },
    ),
    "song": (
        "song",
        {
            **{**FLAT, "multipliers": (1, 1), "attention": (), "num_classes": 3},
            **{"embedding": "fourier", "encoder": "residual", "resample_filter": (1, 3, 3, 1)},
        },
    ),
    "dhariwal": ("dhariwal", {**FLAT, "num_classes": 3, "remat": True}),
    "dit": (
        "dit",
        {
            **{"width": 8, "depth": 2, "heads": 2, "out_channels": 1, "num_classes": 3},
            **{"qk_norm": True, "double_norm": True, "remat": True, "extras": EXTRAS},
        },
    ),
    # With a text encoder in front it is also "text_unet" and "clip_text".
    "captioned_unet": (
        "captioned_unet",
        {**TEXT, "vocabulary": 11, "positions": 4, "text_layers": 1, "text_heads": 2},
    ),
}


@pytest.fixture
def double(monkeypatch):
    """Networks that compute in float64, which is no setting of theirs."""
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    for name in ("unet", "text_unet", "clip_text", "dit"):
        module = importlib.import_module(f"ddistill.networks.{name}")
        monkeypatch.setattr(module, "DTYPES", ("float64",))
    with jax.enable_x64(True):
        yield


def draw(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def drawn(module, seed, *args, **kwargs):
    """Parameters without zeros, which would hide layers."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args, **kwargs)["params"]
    flat, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [0.3 * draw(seed + i, x.shape) for i, x in enumerate(flat)])


def point(extras):
    """A point (z, t, extra) and a direction."""
    shapes = ((COUNT, SIDE, SIDE, 1), (COUNT,), (COUNT, extras))
    times = (draw(0, shapes[0]), 0.4 + 0.2 * jnp.arange(COUNT), draw(1, shapes[2]))
    return times, tuple(draw(7 + i, shape) for i, shape in enumerate(shapes))


def assert_derivative(fn, at, along, step=2e-7):
    """`jax.jvp` of `fn` is its central difference, and no small number."""

    @jax.jit
    def run(by):
        moved = jax.tree.map(lambda x, d: x + by * d, at, along)
        return jax.jvp(fn, moved, along)

    (_, slope), (up, _), (down, _) = run(0.0), run(step), run(-step)
    for s, high, low in zip(*map(jax.tree.leaves, (slope, up, down))):
        assert s.dtype == high.dtype == jnp.float64
        difference = (high - low) / (2 * step)
        assert np.abs(difference).max() > 1e-2
        np.testing.assert_allclose(s, difference, rtol=1e-6, atol=1e-7 * np.abs(high).max())


def call(module, params, cond, z, t, extra):
    given = {"extra": extra} if getattr(module, "extras", ()) else {}
    return module.apply({"params": params}, z, 3.0 * t, cond, **given)


@pytest.mark.parametrize("case", NETWORKS)
def test_networks(double, case, monkeypatch):
    monkeypatch.setattr(attention, "MOST_SCORES", 2 * SIDE)  # several chunks
    name, options = NETWORKS[case]
    module = networks.build(name, **options, dtype="float64")
    texts = Tokens(jnp.array([[1, 5, 10], [2, 10, 0]]))
    cond = texts if name == "captioned_unet" else jnp.arange(COUNT)
    at, along = point(len(getattr(module, "extras", ())))
    params = drawn(module, 3, *at[:2], cond)
    assert_derivative(lambda *x: call(module, params, cond, *x), at, along)


@pytest.mark.parametrize("case", ["unet", "dit"])
def test_students_that_are_vmapped(double, case):
    """By convolutions without groups, as on GPUs."""
    options = UNET if case == "unet" else NETWORKS[case][1]
    module = for_platform(networks.build(case, **options, dtype="float64"), "gpu", True)
    at, along = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), point(2))
    cond = jnp.arange(COUNT)
    params = stack([drawn(module, 3 + k, at[0][0], at[1][0], cond) for k in range(STUDENTS)])

    def run(*x):
        return jax.vmap(lambda params, *x: call(module, params, cond, *x))(params, *x)

    assert_derivative(run, at, along)


@pytest.mark.parametrize(
    ("kind", "form"),
    [("edm", "plain"), ("flow", "guided"), ("v", "clipped"), ("flow", "routed")],
)
def test_denoisers(double, kind, form):
    """In z, the level and a second time, of every kind of denoiser."""
    module = tiny.TinyNet(num_classes=3, extras=EXTRAS)
    at, along = point(2)
    cond = jnp.arange(COUNT)
    made = [drawn(module, 3 + k, *at[:2], cond, extra=at[2]) for k in range(STUDENTS)]
    denoiser = Denoiser.from_module(module, made[0], kind)
    if form == "guided":
        denoiser = GuidedDenoiser(denoiser, 3.0, 3)
    elif form == "clipped":
        denoiser = ClippedDenoiser(denoiser, 2.0)
    elif form == "routed":
        students = Denoiser.from_module(module, stack(made), kind)
        denoiser = RoutedDenoiser(students, timestep_partition(cosine(10), STUDENTS))

    def run(z, t, extra):
        given = denoiser.given(end_time=extra[:, 0], guidance=extra[:, 1])
        found = given(z, Level(1.0 - t, t, t), cond)
        return found.x0, found.eps

    assert_derivative(run, at, along)


def test_fused_attention_is_left_out_where_forward_mode_is_asked_for():
    """cuDNN's kernel has no forward mode; every denoiser around a network is looked into."""
    net = networks.build("text_unet", **TEXT, attention_impl="cudnn")
    plain = Denoiser.from_module(net, {})
    for denoiser in (plain, GuidedDenoiser(plain, 3.0, 3), ClippedDenoiser(plain, 1.0)):
        found = forward_mode(denoiser)
        inner = getattr(found, "denoiser", found)
        assert inner.apply_fn.module == net.clone(attention_impl="chunked")
        assert type(found) is type(denoiser)
    routed = RoutedDenoiser(plain, timestep_partition(cosine(10), 2))
    assert forward_mode(routed).students.apply_fn.module.attention_impl == "chunked"
    without = Denoiser.from_module(networks.build("unet", **UNET), {})
    assert forward_mode(without) is without
