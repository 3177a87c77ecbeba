"""DDIM inversion of Gaussian data, where every step is known in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import GaussianDenoiser, ddim_map, ode_map

from ddistill.evaluation.metrics.paths import slerp
from ddistill.samplers import Previous, ddim
from ddistill.samplers.inversion import ddim_inversion, inversion_update, noising, unit_noise
from ddistill.schedules import cosine, karras, make_grid, subsequence

MEAN, STD = 0.3, 0.5
DENOISER = GaussianDenoiser(MEAN, STD)


def levels(steps, made=cosine):
    schedule = made(256)
    return subsequence(schedule, make_grid(schedule, steps, "trailing"))


def invert(images, schedule, **options):
    z = ddim_inversion(DENOISER, noising(schedule), jnp.asarray(images, jnp.float32), **options)
    return np.asarray(unit_noise(z, schedule))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).standard_normal((4, 2, 2, 1)).astype(np.float32)


def test_the_error_against_the_ode_falls_with_the_step(noise):
    """First order: four times the steps leave about a quarter of the error."""
    errors = []
    for steps in (16, 64, 256):
        schedule = levels(steps)
        images = ode_map(schedule, noise, MEAN, STD)
        errors.append(np.abs(invert(images, schedule) - noise).max())
    assert errors[2] < 0.02
    assert errors[0] > 2.5 * errors[1] > 6.25 * errors[2]


@pytest.mark.parametrize("made", [cosine, karras])
def test_iterations_solve_ddims_step_exactly(noise, made):
    schedule = levels(64, made)
    images = ddim_map(schedule, noise, MEAN, STD)
    once = np.abs(invert(images, schedule) - noise).max()
    solved = np.abs(invert(images, schedule, iterations=20) - noise).max()
    assert solved < 2e-3
    assert solved < once / 5
    found = ddim(DENOISER, schedule, invert(images, schedule, iterations=20))
    assert np.abs(np.asarray(found) - images).max() < 1e-3


def test_the_network_is_called_at_noisy_levels_only():
    schedule, called = levels(4), []
    reverse = noising(schedule)
    z = jnp.zeros((1, 2, 2, 1))

    def denoise(z, level):
        called.append(float(level.sigma))
        return DENOISER(z, level)

    for i in range(4, 0, -1):
        before = Previous(reverse.at(min(i + 1, 4)), z)
        z, _ = inversion_update(denoise, z, reverse.at(i), reverse.at(i - 1), None, before)
    assert np.allclose(called, np.asarray(schedule.sigma)[[1, 1, 2, 3]])


def test_spherical_interpolation_keeps_the_norm():
    a, b = np.random.default_rng(1).standard_normal((2, 8, 8, 3))
    path = slerp(a, b, np.linspace(0, 1, 5))
    assert np.allclose(path[0], a, atol=1e-6)
    assert np.allclose(path[-1], b, atol=1e-6)
    norms, ends = np.linalg.norm(path.reshape(5, -1), axis=1), [np.linalg.norm(x) for x in (a, b)]
    assert min(ends) - 0.5 < norms.min() <= norms.max() < max(ends) + 0.5
    straight = np.linalg.norm((a + b) / 2)
    assert straight < 0.8 * norms[2]
    # An angle of 90 degrees in two dimensions: half the way is 45 degrees.
    half = slerp(np.array([2.0, 0.0]), np.array([0.0, 2.0]), np.array([0.5]))
    assert np.allclose(half, 2**0.5)
    assert np.allclose(slerp(a, a, np.array([0.3])), a, atol=1e-6)
