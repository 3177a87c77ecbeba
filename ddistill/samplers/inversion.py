"""DDIM inversion: from an image to the noise from which deterministic sampling makes it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddistill.diffusion import Prediction, expand
from ddistill.samplers.loops import Denoise, Previous
from ddistill.samplers.sampler import Sampler
from ddistill.schedules import Level, Schedule


def inversion_update(
    denoise: Denoise,
    z: Array,
    here: Level,
    there: Level,
    key: Array | None = None,
    previous: Previous | None = None,
    *,
    iterations: float = 1,
) -> tuple[Array, Prediction]:
    """Solves a DDIM step for its start: the z' at the noisier level `there` that DDIM takes to z.

    DDIM's step is z = alpha x0 + sigma eps, with x0 and eps predicted at z'.
    Elimination of x0 or of eps gives

        z' = (alpha' / alpha) z + (sigma' - sigma alpha' / alpha) eps(z'),
        z' = (sigma' / sigma) z + (alpha' - alpha sigma' / sigma) x0(z').

    The first form is used where alpha is larger than sigma, the second one elsewhere: both are
    contractions there. The first iteration predicts at z instead of z', which is the usual
    inversion (arXiv 2010.02502 section 5.4), of first order in the step; further ones are
    fixed-point iterations. Networks are not defined at the clean end, where the first step predicts
    at `there`.

    Args:
      denoise, z, here, there, key, previous: as in `ddistill.samplers.algorithms`.
      iterations: denoiser calls in this step, 1 or more.
    """
    del key
    starts = previous is None or (previous.level.sigma == here.sigma)
    at = jax.tree.map(lambda first, other: jnp.where(starts, first, other), there, here)
    prediction = denoise(z, at)
    found = _solved(prediction, z, here, there)
    for _ in range(int(iterations) - 1):
        prediction = denoise(found, there)
        found = _solved(prediction, z, here, there)
    return found, prediction


def _solved(prediction: Prediction, z: Array, here: Level, there: Level) -> Array:
    alpha, sigma = expand(here.alpha, z), expand(here.sigma, z)
    clean = alpha > sigma
    a, s = jnp.where(clean, alpha, 1.0), jnp.where(clean, 1.0, sigma)  # no division by zero
    up, noise = expand(there.alpha, z), expand(there.sigma, z)
    by_eps = up / a * z + (noise - sigma * up / a) * prediction.eps
    by_x0 = noise / s * z + (up - alpha * noise / s) * prediction.x0
    return jnp.where(clean, by_eps, by_x0)


# No sampler of settings: it runs on `noising` schedules, from clean to noisy.
ddim_inversion = Sampler("ddim_inversion", "DDIM inversion", inversion_update, multistep=True)


def noising(schedule: Schedule) -> Schedule:
    """The levels of a schedule in the opposite order, for `ddim_inversion`."""
    return jax.tree.map(lambda table: table[::-1], schedule)


def unit_noise(z: Array, schedule: Schedule) -> Array:
    """z at the noisiest level of a schedule as the noise that samplers start from."""
    return z / jnp.maximum(1.0, schedule.sigma[-1])
