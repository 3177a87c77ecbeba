"""What samplers are tested on: a nonlinear exact denoiser and a small network."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import struct

from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction, from_x0
from ddistill.samplers import LOOPS, SAMPLERS
from ddistill.schedules import Level, cosine, subsequence, uniform_grid

SHAPE = (3, 2, 2, 1)
KEY = jax.random.key(0)
# Samplers of fixed rows are tested with the students that they are for.
every_sampler = pytest.mark.parametrize(
    "name", sorted(n for n, s in SAMPLERS.items() if not s.rows)
)
every_loop = pytest.mark.parametrize("loop", LOOPS)
scan_or_dispatch = pytest.mark.parametrize("loop", ["scan", "dispatch"])


def unit_noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@struct.dataclass
class TwoPoints:
    """The exact denoiser of data that are +1 or -1, pixel by pixel: nonlinear in z."""

    scale: Any = 1.0

    def __call__(self, z, level: Level, cond=None) -> Prediction:
        return from_x0(self.scale * jnp.tanh(level.alpha * z / level.sigma**2), z, level)


class Net(nn.Module):
    """A convolution, so that loops are compared on what they are for."""

    @nn.compact
    def __call__(self, x, time, cond=None, *, train=False, taps=()):
        h = nn.Conv(4, (3, 3))(x) + jnp.sin(time / 100)[:, None, None, None]
        h = h if cond is None else h + cond[:, None, None, None]
        return nn.Conv(x.shape[-1], (3, 3))(jnp.tanh(h))


@functools.cache
def parameters(seed):
    shapes = jax.eval_shape(Net().init, KEY, jnp.zeros(SHAPE), jnp.zeros(3))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.float32(0.3 * rng.normal(size=p.shape)), shapes)


def network(seed=0):
    return Denoiser.from_module(Net(), parameters(seed), "v")


def coarse(N, T=1000, table=cosine):
    return subsequence(table(T), uniform_grid(T, N))
