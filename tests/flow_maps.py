"""Exact two-time networks and consistency models of Gaussian data, in float64."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from gaussian import GaussianDenoiser

from ddistill.diffusion import convert, expand, flow_time
from ddistill.schedules import Level

MEAN, STD = 0.3, 0.7
EXACT = GaussianDenoiser(MEAN, STD)


def spread(t):
    """The standard deviation at t of the straight path."""
    return jnp.sqrt(((1.0 - t) * STD) ** 2 + t**2)


def moved(x, t, r):
    """Where the path leads from `x` at t to r, in straight coordinates."""
    t, r = expand(t, x), expand(r, x)
    return (1.0 - r) * MEAN + spread(r) / spread(t) * (x - (1.0 - t) * MEAN)


@dataclass(frozen=True)
class ExactMap:
    """The mean velocity of the path, on any schedule; `end_time` is r times `scale`."""

    end: Any = None
    scale: float = 1000.0
    off: float = 0.0  # of a map that is wrong
    extras = ("end_time",)
    prediction = "flow"

    def given(self, end_time):
        return replace(self, end=jnp.asarray(end_time) / self.scale)

    def __call__(self, z, level: Level, cond=None, *, key=None):
        t, r = jnp.broadcast_to(flow_time(level), z.shape[:1]), self.end
        x = z / expand(level.alpha + level.sigma, z)
        exact = EXACT(z, level)
        apart = expand(jnp.where(t > r, t - r, 1.0), z)
        mean = (x - moved(x, t, r)) / apart
        u = jnp.where(expand(t > r, z), mean, exact.eps - exact.x0)
        u = u + self.off * jnp.sin(x) * expand(1.0 + t * r, z)
        return convert("flow", u, z, level)
