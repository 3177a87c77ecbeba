"""Samplers against exact maps and against their papers' algorithms in numpy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import GaussianDenoiser, ancestral_moments, ddim_map, ode_map
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import (
    KEY,
    SHAPE,
    TwoPoints,
    coarse,
    every_loop,
    every_sampler,
    network,
    scan_or_dispatch,
    unit_noise,
)

from ddistill.diffusion import HEUN_MAX_RATIO, from_eps, from_x0
from ddistill.errors import ConfigError
from ddistill.samplers import ddim, ddpm, dpm_solver_pp, get_sampler, heun, nfe
from ddistill.schedules import (
    SPACINGS,
    Schedule,
    cosine,
    karras,
    make_grid,
    sigmoid_beta,
    subsequence,
    uniform_grid,
)

# ----------------------------------------------------------------------------- exact solutions


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([cosine, sigmoid_beta, karras]),
    st.sampled_from(SPACINGS),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.4, 1.5]),
)
def test_ddim_is_the_exact_map_of_any_grid(table, spacing, N, std):
    schedule = table(100, dtype=np.float64)
    schedule = subsequence(schedule, make_grid(schedule, N, spacing))
    with jax.enable_x64(True):
        ours = ddim(GaussianDenoiser(0.3, std), schedule, unit_noise())
        np.testing.assert_allclose(
            ours, ddim_map(schedule, unit_noise(), 0.3, std), rtol=1e-9, atol=1e-12
        )


@every_loop
def test_ddim_is_the_exact_map_in_float32_too(loop):
    schedule = coarse(16)
    ours = ddim(GaussianDenoiser(0.3, 0.5), schedule, jnp.float32(unit_noise()), loop=loop)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, ddim_map(schedule, unit_noise(), 0.3, 0.5), atol=2e-6)


def even_log_snr(N, variance_preserving):
    """N steps from log(alpha / sigma) = -3 to 3, not into a clean level."""
    rho = np.exp(np.linspace(3.0, -3.0, N + 1))
    alpha = rho / np.sqrt(1 + rho**2) if variance_preserving else np.ones(N + 1)
    return Schedule(alpha, alpha / rho, np.arange(N + 1.0))


@pytest.mark.parametrize("name, order", [("ddim", 1), ("heun", 2), ("dpm_solver_pp", 2)])
@pytest.mark.parametrize("variance_preserving", [True, False], ids=["vp", "ve"])
def test_samplers_converge_to_the_ode_at_their_order(name, order, variance_preserving):
    counts, errors = np.array([32, 64, 128, 256]), []
    with jax.enable_x64(True):
        for N in counts:
            schedule = even_log_snr(int(N), variance_preserving)
            ours = get_sampler(name)(GaussianDenoiser(0.3, 0.5), schedule, unit_noise())
            errors.append(np.abs(ours - ode_map(schedule, unit_noise(), 0.3, 0.5)).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15, errors
    assert errors[-1] < (2e-2 if order == 1 else 5e-4)


@pytest.mark.parametrize("table", [cosine, karras])
def test_second_order_beats_first_on_the_grids_in_use(table):
    schedule = table(1000, dtype=np.float64)
    schedule = subsequence(schedule, uniform_grid(1000, 16 if table is cosine else 20))
    teacher, error = GaussianDenoiser(0.2, 0.5), {}
    with jax.enable_x64(True):
        exact = ode_map(schedule, unit_noise(), 0.2, 0.5)
        for name in ("ddim", "heun", "dpm_solver_pp"):
            ours = get_sampler(name)(teacher, schedule, unit_noise())
            error[name] = np.abs(ours - exact).max()
    # Heun's first step would be off by 1e3 on the cosine table if it were not Euler's.
    assert error["heun"] < error["ddim"] / 3
    assert error["dpm_solver_pp"] < error["ddim"] / 3


def numpy_heun(denoise, sigma, x):
    """arXiv 2206.00364 algorithm 1 with sigma(t) = t, s(t) = 1; `sigma` falls to 0."""
    for i in range(len(sigma) - 1):
        slope = (x - denoise(x, sigma[i])) / sigma[i]
        following = x + (sigma[i + 1] - sigma[i]) * slope
        if i < len(sigma) - 2:
            other = (following - denoise(following, sigma[i + 1])) / sigma[i + 1]
            following = x + (sigma[i + 1] - sigma[i]) * (slope + other) / 2
        x = following
    return x


@pytest.mark.parametrize("N", [1, 2, 3, 18])
def test_heun_is_edms_algorithm(N):
    schedule = karras(N, sigma_min=0.02 if N == 3 else 0.9 if N == 2 else 0.002, dtype=np.float64)
    with jax.enable_x64(True):
        ours = heun(TwoPoints(), schedule, unit_noise())
    reference = numpy_heun(lambda x, s: np.tanh(x / s**2), schedule.sigma[::-1], 80 * unit_noise())
    if N == 3:  # steps that lower the noise more than a hundredfold are Euler's by design
        ratios = schedule.sigma[2:] / schedule.sigma[1:-1]
        assert ratios.min() < HEUN_MAX_RATIO
    np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-11)


def numpy_dpm_solver_pp(denoise, alpha, sigma, x):
    """arXiv 2211.01095 algorithm 2, the last step of first order where it ends at sigma = 0."""
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)
    previous = None
    for i in range(1, len(sigma)):
        h, data = lam[i] - lam[i - 1], denoise(x, alpha[i - 1], sigma[i - 1])
        d = data
        if previous is not None and np.isfinite(h):
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * previous
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h) - 1) * d
        previous = data
    return x


@pytest.mark.parametrize("N", [1, 2, 10])
@pytest.mark.parametrize("table", [cosine, karras, even_log_snr])
def test_dpm_solver_pp_is_the_papers_algorithm(N, table):
    if table is even_log_snr:
        schedule = even_log_snr(N, True)
    else:
        schedule = subsequence(table(50, dtype=np.float64), uniform_grid(50, N))
    start = max(1.0, schedule.sigma[-1]) * unit_noise()
    with jax.enable_x64(True):
        ours = dpm_solver_pp(TwoPoints(), schedule, unit_noise())
    reference = numpy_dpm_solver_pp(
        lambda x, a, s: np.tanh(a * x / s**2), schedule.alpha[::-1], schedule.sigma[::-1], start
    )
    np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("N, eta", [(1, 1.0), (4, 1.0), (4, 0.6), (100, 1.0)])
def test_ancestral_samples_have_the_exact_mean_and_variance(N, eta):
    schedule, teacher = coarse(N), GaussianDenoiser(0.3, 0.5)
    noise = jnp.float32(unit_noise((20_000, 2, 2, 1)))
    if eta == 1.0:
        out = np.asarray(ddpm(teacher, schedule, noise, KEY), np.float64)
    else:
        out = np.asarray(ddim(teacher, schedule, noise, KEY, eta=eta), np.float64)
    mean, variance = ancestral_moments(schedule, 0.3, 0.5, eta)
    count = out.size
    assert abs(out.mean() - mean) < 4.5 * np.sqrt(variance / count) + 1e-6
    assert abs(out.var() - variance) < 4.5 * variance * np.sqrt(2 / count) + 1e-9
    if N == 100:  # nearly the data's own distribution
        assert abs(mean - 0.3) < 1e-3
        assert abs(np.sqrt(variance) - 0.5) < 0.03


def test_ddpm_is_ddim_with_eta_1():
    noise, schedule = jnp.float32(unit_noise()), coarse(8)
    same = ddim(TwoPoints(), schedule, noise, KEY, eta=1.0)
    np.testing.assert_allclose(ddpm(TwoPoints(), schedule, noise, KEY), same, rtol=1e-5, atol=1e-6)


def test_ddim_of_every_level_is_the_teachers_own_sampler_bit_for_bit():
    """SFDDM with T' = T and equal weights: same noise, same image."""
    table, noise = sigmoid_beta(20), jnp.float32(unit_noise())
    student = subsequence(table, uniform_grid(20, 20))
    np.testing.assert_array_equal(ddim(network(), table, noise), ddim(network(), student, noise))


# ----------------------------------------------------------------------------------- the ends


@every_sampler
@scan_or_dispatch
@pytest.mark.parametrize("table", [cosine, karras])
def test_one_step_returns_the_denoisers_output_at_the_noisiest_level(name, loop, table):
    schedule, noise = coarse(1, 100, table), jnp.float32(unit_noise())
    start = noise * max(1.0, float(schedule.sigma[1]))
    ours = get_sampler(name)(TwoPoints(), schedule, noise, KEY, loop=loop)
    expected = TwoPoints()(start, schedule.at(1)).x0
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@every_sampler
@scan_or_dispatch
def test_trajectories_start_at_the_noise_and_end_at_the_image(name, loop):
    schedule, noise = karras(3), jnp.float32(unit_noise())
    run = dict(loop=loop, clip=1.0)
    images, states = get_sampler(name)(TwoPoints(), schedule, noise, KEY, trajectory=True, **run)
    chex.assert_shape(states, (4, *SHAPE))
    np.testing.assert_array_equal(states[0], noise * np.float32(80))
    np.testing.assert_array_equal(states[-1], images)
    alone = get_sampler(name)(TwoPoints(), schedule, noise, KEY, **run)
    np.testing.assert_allclose(alone, images, rtol=1e-5, atol=1e-5)


@every_sampler
def test_the_last_karras_step_returns_the_denoisers_output(name):
    schedule, noise = karras(6), jnp.float32(unit_noise())
    _, states = get_sampler(name)(TwoPoints(), schedule, noise, KEY, trajectory=True)
    before, after = states[-2], states[-1]
    expected = TwoPoints()(before, schedule.at(1)).x0
    np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-6)


def test_a_table_that_ends_noisy_keeps_its_last_noise():
    schedule = subsequence(cosine(1024, clean=False), [0, 512, 1024])
    _, states = ddim(TwoPoints(), schedule, jnp.float32(unit_noise()), trajectory=True)
    said = TwoPoints()(states[1], schedule.at(1))
    expected = schedule.alpha[0] * said.x0 + schedule.sigma[0] * said.eps
    np.testing.assert_allclose(states[2], expected, rtol=1e-6)
    assert np.abs(states[2] - said.x0).max() > 1e-4


# ----------------------------------------------------------------------------------- arguments


@every_sampler
def test_clipping_bounds_every_prediction(name):
    """An eps-network at alpha = 4.8e-5 says x0 of 1e3; with `clip` the image stays in bounds."""

    def teacher(z, level, cond=None):
        return from_eps(0.9 * z, z, level)

    schedule, noise = coarse(3, 1024), jnp.float32(unit_noise())
    wild, calm = (
        get_sampler(name)(teacher, schedule, noise, KEY, clip=clip) for clip in (None, 1.0)
    )
    assert np.abs(wild).max() > (0.5 if name == "ddim_afs" else 10)  # whose first step is tame
    limit = 2.0 if name == "dpm_solver_pp" else 1.0  # 2M extrapolates between predictions
    assert np.abs(calm).max() <= limit
    assert np.abs(calm).max() > 0.01


def test_clipping_that_does_not_bind_changes_nothing():
    noise = jnp.float32(unit_noise())
    free = ddim(TwoPoints(), coarse(5), noise)
    np.testing.assert_allclose(ddim(TwoPoints(), coarse(5), noise, clip=1e3), free, atol=1e-5)


@every_sampler
def test_the_condition_reaches_the_denoiser(name):
    def teacher(z, level, cond):
        return from_x0(cond[:, None, None, None] * jnp.ones_like(z), z, level)

    cond, noise = jnp.array([0.1, 0.2, 0.3]), jnp.float32(unit_noise())
    images = get_sampler(name)(teacher, coarse(3), noise, KEY, cond=cond)
    np.testing.assert_allclose(images, np.broadcast_to(cond[:, None, None, None], SHAPE), atol=1e-5)


@every_loop
def test_a_plain_function_is_a_denoiser(loop):
    shift, noise = jnp.float32(0.25), jnp.float32(unit_noise())

    def teacher(z, level, cond=None):
        return GaussianDenoiser(shift, 0.5)(z, level)

    ours = ddim(teacher, coarse(4), noise, loop=loop)
    theirs = ddim(GaussianDenoiser(shift, 0.5), coarse(4), noise, loop=loop)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, options", [("ddpm", {}), ("ddim", {"eta": 0.5})])
def test_noise_comes_from_the_key_alone(name, options):
    sampler, noise = get_sampler(name), jnp.float32(unit_noise())
    one, again, other = (
        sampler(TwoPoints(0.5), coarse(4), noise, jax.random.key(k), **options) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    with pytest.raises(ValueError, match=f"{name}.*needs a key"):
        sampler(TwoPoints(), coarse(4), noise, **options)


def test_unknown_samplers_and_loops_name_the_nearest():
    for call in (lambda: get_sampler("dpm_solver"), lambda: nfe("dpm_solver++", 3)):
        with pytest.raises(ConfigError, match="Did you mean 'dpm_solver_pp'"):
            call()
    with pytest.raises(ConfigError, match="Did you mean 'scan'"):
        ddim(TwoPoints(), coarse(2), jnp.zeros(SHAPE), loop="scna")


@pytest.mark.parametrize("steps", [1, 3])
def test_renoise_clips_the_last_image_alone(steps):
    """Few-step students are trained on what they make of their images as they are."""
    schedule = cosine(16)
    levels = subsequence(schedule, make_grid(schedule, steps, "trailing"))

    def student(z, level, cond=None):
        return from_x0(3.0 * z, z, level)

    run = functools.partial(get_sampler("renoise"), student, levels, unit_noise(), KEY)
    free, states = run(trajectory=True)
    image, clipped = run(clip=1.0, trajectory=True)
    assert float(jnp.max(jnp.abs(free))) > 1.5
    np.testing.assert_allclose(image, jnp.clip(free, -1.0, 1.0), rtol=1e-6)
    np.testing.assert_array_equal(clipped[:-1], states[:-1])
    np.testing.assert_array_equal(clipped[-1], image)
    np.testing.assert_array_equal(run(clip=1.0), image)
    if steps == 1:
        alone = ddim(student, levels, unit_noise(), clip=1.0)
        np.testing.assert_allclose(alone, image, rtol=1e-6)
