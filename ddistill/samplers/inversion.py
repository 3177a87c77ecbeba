"""DDIM inversion: from an image to the noise from which deterministic sampling makes it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddistill.diffusion import Prediction, expand
from ddistill.samplers.loops import Denoise
from ddistill.samplers.sampler import Sampler
from ddistill.schedules import Level, Schedule


def inversion_update(
    denoise: Denoise,
    z: Array,
    here: Level,
    there: Level,
    key: Array | None = None,
    *,
    iterations: float = 1,
) -> tuple[Array, Prediction]:
    """Solves a DDIM step for its start: the z' at the noisier level `there` that DDIM takes to z.

    With x0 and eps predicted at z', DDIM's step is z = alpha x0 + sigma eps, and
    z' = alpha' x0 + sigma' eps, so that

        z' = (alpha' / alpha) z + (sigma' - sigma alpha' / alpha) eps(z').

    The equation is solved by fixed-point iteration from z' = (alpha' / alpha) z. One iteration is
    the usual inversion (arXiv 2105.05233 section F), of first order in the step; the networks are
    called at noisy levels only.

    Args:
      denoise, z, here, there, key: as in `ddistill.samplers.algorithms`.
      iterations: denoiser calls in this step, 1 or more.
    """
    del key
    scale = expand(there.alpha / here.alpha, z)
    weight = expand(there.sigma, z) - expand(here.sigma, z) * scale
    found = scale * z
    for _ in range(int(iterations)):
        prediction = denoise(found, there)
        found = scale * z + weight * prediction.eps
    return found, prediction


# No sampler of settings: it runs on `noising` schedules, from clean to noisy.
ddim_inversion = Sampler("ddim_inversion", "DDIM inversion", inversion_update)


def noising(schedule: Schedule) -> Schedule:
    """The levels of a schedule in the opposite order, for `ddim_inversion`."""
    return jax.tree.map(lambda table: table[::-1], schedule)


def unit_noise(z: Array, schedule: Schedule) -> Array:
    """z at the noisiest level of a schedule as the noise that samplers start from."""
    return z / jnp.maximum(1.0, schedule.sigma[-1])
