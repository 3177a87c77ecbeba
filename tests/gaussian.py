"""Data N(mean, std^2 I): everything about its diffusion is known in closed form.

With z = alpha x0 + sigma eps, var(z) = alpha^2 std^2 + sigma^2 and the posterior means are linear
in z. A DDIM step is then affine in z, and so is any sequence of them: (z - alpha mean) is scaled
by one factor at every step. Factors and variances are worked out in float64.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from ddistill.denoiser import Denoiser
from ddistill.diffusion import Prediction, expand, output_of
from ddistill.schedules import Level, Schedule


@struct.dataclass
class GaussianDenoiser:
    """The exact denoiser; a pytree, so that samplers take it as an argument.

    Attributes:
      mean: number or an array that broadcasts over images.
      std: standard deviation of every pixel; 0 is a point mass.
    """

    mean: Any = 0.0
    std: Any = 1.0

    def __call__(self, z, level: Level, cond=None, *, key=None) -> Prediction:
        del cond, key
        alpha, sigma = expand(level.alpha, z), expand(level.sigma, z)
        variance = (alpha * self.std) ** 2 + sigma**2
        offset = (z - alpha * self.mean) / variance
        return Prediction(self.mean + alpha * self.std**2 * offset, sigma * offset)

    def with_features(self, taps: Sequence[str]):
        """Predictions with x0 as every tap's feature."""

        def call(z, level, cond=None, *, key=None):
            prediction = self(z, level, cond, key=key)
            return prediction, {tap: prediction.x0 for tap in taps}

        return call

    def as_network(self, schedule: Schedule, kind: str, sigma_data: float = 0.5) -> Denoiser:
        """The same as a `Denoiser` whose network speaks `kind` and reads its level off the time."""
        times, alphas, sigmas = (
            np.asarray(t) for t in (schedule.time, schedule.alpha, schedule.sigma)
        )

        def apply(params, x, time, cond, *, train, rngs, taps):
            del cond, train, rngs
            index = jnp.argmin(jnp.abs(time[:, None] - times[1:]), axis=1) + 1
            level = Level(jnp.asarray(alphas)[index], jnp.asarray(sigmas)[index], time)
            if kind == "edm":  # the network sees z scaled by c_in
                x = x * expand(jnp.sqrt(level.sigma**2 + (level.alpha * sigma_data) ** 2), x)
            if kind == "flow":  # scaled onto the straight path
                x = x * expand(level.alpha + level.sigma, x)
            prediction = GaussianDenoiser(params["mean"], params["std"])(x, level)
            output = output_of(kind, prediction, x, level, sigma_data)
            return (output, {tap: output for tap in taps}) if taps else output

        params = {"mean": np.float32(self.mean), "std": np.float32(self.std)}
        return Denoiser(params, apply, kind, sigma_data)


def ddim_factors(schedule: Schedule, std: float) -> np.ndarray:
    """`[N]`: z' - alpha' mean = factor * (z - alpha mean) of each DDIM step, noisiest first."""
    a, s = (np.asarray(t, np.float64)[::-1] for t in (schedule.alpha, schedule.sigma))
    variance = (a * std) ** 2 + s**2
    return (a[1:] * a[:-1] * std**2 + s[1:] * s[:-1]) / variance[:-1]


def ddim_map(schedule: Schedule, noise: np.ndarray, mean: Any, std: float) -> np.ndarray:
    """Exactly where DDIM on the schedule's levels takes unit noise with the exact denoiser."""
    a, s = (np.asarray(t, np.float64) for t in (schedule.alpha, schedule.sigma))
    z = np.asarray(noise, np.float64) * max(1.0, s[-1])
    return a[0] * mean + np.prod(ddim_factors(schedule, std)) * (z - a[-1] * mean)


def ode_map(schedule: Schedule, noise: np.ndarray, mean: Any, std: float) -> np.ndarray:
    """The same for the probability-flow ODE itself, the limit of infinitely many steps."""
    a, s = (np.asarray(t, np.float64) for t in (schedule.alpha, schedule.sigma))
    z = np.asarray(noise, np.float64) * max(1.0, s[-1])
    deviation = np.sqrt((a * std) ** 2 + s**2)
    return a[0] * mean + deviation[0] / deviation[-1] * (z - a[-1] * mean)


def ancestral_moments(schedule: Schedule, mean: float, std: float, eta: float = 1.0):
    """Mean and variance of the output of ancestral sampling (eta: DDIM's), from unit noise.

    A step's noise has the variance eta^2 sigma'^2 (1 - q^2), q^2 the ratio of the SNRs; the rest of
    sigma' stays with the predicted noise.
    """
    a, s = (np.asarray(t, np.float64)[::-1] for t in (schedule.alpha, schedule.sigma))
    start = max(1.0, s[0])
    offset, variance = -a[0] * mean, start**2
    for i in range(len(a) - 1):
        total = (a[i] * std) ** 2 + s[i] ** 2
        added = (eta * s[i + 1]) ** 2 * (1.0 - (a[i] * s[i + 1] / (a[i + 1] * s[i])) ** 2)
        direction = np.sqrt(s[i + 1] ** 2 - added)
        factor = (a[i + 1] * a[i] * std**2 + direction * s[i]) / total
        offset, variance = factor * offset, factor**2 * variance + added
    return a[-1] * mean + offset, variance
