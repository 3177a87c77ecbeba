"""The loops of samplers: equal images, calls, compilations, and sampling inside jit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct
from sampled import KEY, TwoPoints, coarse, every_sampler, network, scan_or_dispatch, unit_noise

from ddistill.denoiser import Denoiser
from ddistill.diffusion import from_x0
from ddistill.samplers import ddim, get_sampler, loops, nfe
from ddistill.schedules import cosine, karras, sigmoid_beta

# --------------------------------------------------------------------------------------- loops


@every_sampler
def test_every_loop_gives_the_same_images(name):
    args, run = (network(), coarse(3), jnp.float32(unit_noise()), KEY), dict(cond=jnp.arange(3))
    scanned = get_sampler(name)(*args, loop="scan", clip=1.0, **run)
    for loop in ("dispatch", "unroll", "auto"):
        ours = get_sampler(name)(*args, loop=loop, clip=1.0, **run)
        np.testing.assert_allclose(ours, scanned, rtol=1e-4, atol=1e-5, err_msg=loop)


@struct.dataclass
class Marked:
    """Leaves one sine in the program for every call, and nothing else does."""

    def __call__(self, z, level, cond=None):
        return from_x0(jax.lax.sin(z), z, level)


def count_sines(jaxpr) -> int:
    """How many sines running a program takes: those in a loop's body count once a turn."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")]
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += equation.primitive.name == "sin"
        total += turns * sum(count_sines(i) for i in inner)
    return total


@every_sampler
@pytest.mark.parametrize("loop", ["scan", "dispatch", "unroll"])
@pytest.mark.parametrize("N", [1, 2, 5])
def test_nfe_is_the_number_of_denoiser_calls(name, loop, N):
    sampler, schedule = get_sampler(name), coarse(N)
    program = jax.make_jaxpr(lambda noise: sampler(Marked(), schedule, noise, KEY, loop=loop))
    assert count_sines(program(jnp.float32(unit_noise())).jaxpr) == nfe(name, N)


@struct.dataclass
class Traced:
    """Notes every trace of the denoiser it stands for."""

    inner: Any
    log: list = struct.field(pytree_node=False)

    def __call__(self, z, level, cond=None):
        self.log.append(z.shape)
        return self.inner(z, level, cond)


class Log(list):
    """A list that may be a static part of a pytree."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


@every_sampler
def test_dispatched_steps_compile_once_for_all_grids_batches_and_parameters(name):
    log, noise = Log(), jnp.float32(unit_noise())
    sampler = get_sampler(name)
    for N, seed, table in ((5, 0, cosine), (2, 1, cosine), (9, 2, karras), (5, 0, sigmoid_beta)):
        schedule = coarse(N, 50, table)
        sampler(
            Traced(TwoPoints(0.5 + seed), log),
            schedule,
            noise + seed,
            KEY,
            loop="dispatch",
            clip=1.0,
        )
    # Heun's rule calls the denoiser twice, and Euler's step at the end is a program of its own.
    assert len(log) == (3 if name.startswith("heun") else 1)
    sampler(
        Traced(TwoPoints(), log), coarse(3), jnp.zeros((5, 2, 2, 1)), KEY, loop="dispatch", clip=1
    )
    assert len(log) == (6 if name.startswith("heun") else 2)


@every_sampler
@pytest.mark.parametrize("loop", ["scan", "unroll"])
def test_whole_loops_compile_once_for_equal_shapes(name, loop):
    log, noise, sampler = Log(), jnp.float32(unit_noise()), get_sampler(name)
    N = 4 if loop == "scan" else 2
    sampler(Traced(TwoPoints(0.5), log), coarse(N), noise, KEY, loop=loop)
    first = len(log)
    sampler(Traced(TwoPoints(0.6), log), coarse(N, 50), noise + 1, jax.random.key(9), loop=loop)
    assert len(log) == first
    if loop == "scan":  # the loop's body is traced, not each of its steps
        assert first <= 2 * nfe(name, 2)


TRACES: list[int] = []


class Traced1x1(nn.Module):
    """A 1x1 convolution that notes when it is traced, which is once for each program."""

    @nn.compact
    def __call__(self, x, time, cond=None, *, train=False, taps=()):
        TRACES.append(len(TRACES))
        return nn.Dense(x.shape[-1])(x)


def test_equal_modules_built_apart_share_one_compilation():
    found = []
    for seed in (0, 1):
        noise = jnp.zeros((2, 3, 5, 1))
        params = Traced1x1().init(jax.random.key(seed), noise, jnp.zeros(2))["params"]
        before = len(TRACES)
        ddim(Denoiser.from_module(Traced1x1(), params, "v"), coarse(3), noise, loop="dispatch")
        found.append(len(TRACES) - before)
    assert found[0] > 0
    assert found[1] == 0


def test_gradients_by_the_weights_go_through_a_sampler():
    """Only the weights are traced: neither the noise nor the levels are."""
    denoiser, noise = network(0), jnp.ones((2, 3, 5, 1))

    def total(weights):
        moved = jax.tree.map(lambda x: weights * x, denoiser)
        return jnp.sum(ddim(moved, coarse(2), noise, loop="dispatch"))

    slope = jax.grad(total)(jnp.float32(1.0))
    step = 1e-2
    about = (total(1.0 + step) - total(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(slope, about, rtol=2e-2)


def test_cpu_dispatches_by_default():
    assert jax.default_backend() != "cpu" or loops.default_loop(jnp.zeros(1)) == "dispatch"


@every_sampler
@scan_or_dispatch
def test_samplers_run_inside_jit(name, loop):
    sampler, noise = get_sampler(name), jnp.float32(unit_noise())

    @jax.jit
    def run(denoiser, schedule, noise, key):
        return sampler(denoiser, schedule, noise, key, loop=loop, clip=1.0)

    outside = sampler(TwoPoints(0.7), coarse(2), noise, KEY, clip=1.0)
    np.testing.assert_allclose(
        run(TwoPoints(0.7), coarse(2), noise, KEY), outside, rtol=1e-4, atol=1e-5
    )


@every_sampler
def test_gradients_through_a_sampler_are_right(name):
    with jax.enable_x64(True):
        schedule = jax.tree.map(np.float64, coarse(3))

        def total(scale):
            images = get_sampler(name)(TwoPoints(scale), schedule, unit_noise(), KEY, loop="scan")
            return jnp.sum(images**2)

        exact = jax.grad(total)(0.7)
        numeric = (total(0.7 + 1e-5) - total(0.7 - 1e-5)) / 2e-5
        np.testing.assert_allclose(exact, numeric, rtol=1e-5)
