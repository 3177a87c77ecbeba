"""Flow matching: the straight path, its velocity, its ODE and its times, and levels of alpha 0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gaussian import GaussianDenoiser, ode_map
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import plans_of, tiny_settings
from sampled import KEY, TwoPoints, every_sampler, unit_noise

from ddistill.denoiser import Denoiser
from ddistill.diffusion import (
    KINDS,
    WEIGHTS,
    Prediction,
    add_noise,
    convert,
    flow_time,
    input_scale,
    output_of,
)
from ddistill.errors import ConfigError
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.denoising import Denoising
from ddistill.objectives.distances import ERRORS, PredictionDistance
from ddistill.objectives.sampling import draw_level
from ddistill.partitions import timestep_partition
from ddistill.samplers import ddim, get_sampler, heun_flow
from ddistill.samplers.inversion import ddim_inversion, noising
from ddistill.schedules import (
    Level,
    Schedule,
    linear_path,
    log_snr_grid,
    make_grid,
    make_schedule,
    subsequence,
)
from ddistill.settings import ScheduleSettings

MEAN, STD = 0.3, 0.5
TEACHER = GaussianDenoiser(MEAN, STD)


def images(seed=0, count=3):
    return np.random.default_rng(seed).normal(size=(count, 2, 2, 1))


def level_at(t, dtype=np.float64):
    t = np.asarray(t, dtype)
    return Level(1 - t, t, 1000 * t)


# ------------------------------------------------------------------------------------- the path


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_levels_are_those_of_the_straight_path(shift):
    path, u = linear_path(8, shift), np.arange(9) / 8
    t = shift * u / (1 + (shift - 1) * u)
    np.testing.assert_allclose(path.sigma, t, rtol=1e-6)
    np.testing.assert_allclose(path.alpha, 1 - t, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(path.time, 1000 * t, rtol=1e-6)
    assert (path.alpha[0], path.sigma[0]) == (1.0, 0.0)
    assert (path.alpha[-1], path.sigma[-1]) == (0.0, 1.0)
    np.testing.assert_allclose(flow_time(path), t, rtol=1e-6)


def test_a_long_path_has_its_digits_next_to_both_ends():
    path = make_schedule("linear_path", 10_000, shift=6.0)
    u = np.array([1, 9_999]) / 10_000
    np.testing.assert_allclose(path.alpha[[1, -2]], (1 - u) / (1 + 5 * u), rtol=1e-7)
    np.testing.assert_allclose(path.sigma[[1, -2]], 6 * u / (1 + 5 * u), rtol=1e-7)


@pytest.mark.parametrize("shift", [0.0, -1.0, np.inf])
def test_a_shift_must_be_above_0(shift):
    with pytest.raises(ConfigError, match="shift=.* must be above 0"):
        linear_path(8, shift)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 32])
def test_even_log_snr_leaves_out_the_level_without_an_image(count):
    path = linear_path(32)
    grid = log_snr_grid(path, count)
    assert (len(grid), grid[0], grid[-1]) == (count + 1, 0, 32)
    assert np.all(np.diff(grid) > 0)
    if count == 9:
        inner = np.log(path.alpha[grid[1:-1]] / path.sigma[grid[1:-1]])
        np.testing.assert_allclose(np.diff(inner), np.diff(inner).mean(), rtol=0.35)


def test_ranges_of_equal_log_snr_give_the_last_level_to_the_noisiest_student():
    path = linear_path(32)
    owned = timestep_partition(path, 3, "log_snr").owned_levels(path)
    extent = np.log(path.alpha[1:-1] / path.sigma[1:-1])
    wanted = np.digitize(-extent, np.linspace(-extent[0], -extent[-1], 4)[1:3])
    np.testing.assert_array_equal(owned.argmax(axis=0), np.append(wanted, 2))


# --------------------------------------------------------------------------------- the velocity


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.one_of(st.sampled_from([1.0, 1e-6]), st.floats(1e-6, 1.0)),
    st.integers(0, 2**20),
)
def test_flow_and_every_other_kind_say_the_same(kind, t, seed):
    """eps says nothing of the image at t = 1, where alpha is 0; all others do."""
    if kind == "eps" and t > 1 - 1e-6:
        return
    with jax.enable_x64(True):
        level, x0, eps = level_at(t), images(seed), images(seed + 1)
        z = add_noise(x0, eps, level)
        there = convert("flow", eps - x0, z, level)
        np.testing.assert_allclose(there.x0, x0, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(there.eps, eps, rtol=1e-9, atol=1e-9)
        back = convert(kind, output_of(kind, there, z, level), z, level)
        np.testing.assert_allclose(
            output_of("flow", back, z, level), eps - x0, rtol=1e-7, atol=1e-7 / min(t, 1 - t + 1e-3)
        )


def test_any_output_is_a_prediction_of_its_noisy_image_in_float32():
    z, output = (jnp.asarray(images(i), jnp.float32) for i in (1, 2))
    for t in (1e-6, 0.5, 1 - 1e-7, 1.0):
        level = level_at(t, np.float32)
        said = convert("flow", output, z, level)
        np.testing.assert_allclose(
            level.alpha * said.x0 + level.sigma * said.eps, z, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(said.eps - said.x0, output, rtol=1e-5, atol=1e-6)


def test_a_network_sees_the_point_of_the_straight_path():
    """At a level of any schedule: z / (alpha + sigma) = (1 - t) x0 + t eps."""
    seen = []

    def apply(params, x, time, cond, **mode):
        seen.append(x)
        return x

    level = Level(jnp.float32(0.6), jnp.float32(0.8), jnp.float32(5.0))
    x0, eps = (jnp.asarray(images(i), jnp.float32) for i in (1, 2))
    Denoiser({}, apply, "flow")(add_noise(x0, eps, level), level)
    t = 0.8 / 1.4
    np.testing.assert_allclose(seen[0], (1 - t) * x0 + t * eps, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(input_scale("flow", level_at(0.3)), 1.0, rtol=1e-12)


# --------------------------------------------------------------------------------------- the ODE


def velocity(z, t):
    """Of `TwoPoints`, in float64."""
    level = level_at(t)
    said = TwoPoints()(z, level)
    return np.asarray(said.eps - said.x0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ddim_and_heun_flow_are_eulers_and_heuns_methods(steps):
    with jax.enable_x64(True):
        path = linear_path(steps, 2.0, dtype=np.float64)
        z, t = unit_noise(), path.sigma[::-1]
        euler = heun = z
        for i in range(steps):
            h = t[i] - t[i + 1]
            euler = euler - h * velocity(euler, t[i])
            slope = velocity(heun, t[i])
            if i < steps - 1:  # networks are not called at t = 0
                slope = (slope + velocity(heun - h * slope, t[i + 1])) / 2
            heun = heun - h * slope
        np.testing.assert_allclose(ddim(TwoPoints(), path, z), euler, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(heun_flow(TwoPoints(), path, z), heun, rtol=1e-9, atol=1e-11)
    assert heun_flow.evaluations(steps) == 2 * steps - 1


def test_heun_flow_is_of_second_order_from_the_first_step_on():
    """Also out of the level without an image, where the trapezoid in sigma / alpha is Euler's."""
    counts, errors = np.array([16, 32, 64, 128]), []
    with jax.enable_x64(True):
        for count in counts:
            path = linear_path(int(count), dtype=np.float64)
            exact = ode_map(path, unit_noise(), MEAN, STD)
            errors.append(np.abs(heun_flow(TEACHER, path, unit_noise()) - exact).max())
        first_order = np.abs(ddim(TEACHER, path, unit_noise()) - exact).max()
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.15, errors
    assert errors[-1] < first_order / 20


def test_heun_flow_on_other_levels_is_itself_on_the_straight_path():
    with jax.enable_x64(True):
        path = linear_path(6, 1.5, dtype=np.float64)
        length = np.sqrt(path.alpha**2 + path.sigma**2)
        preserving = Schedule(path.alpha / length, path.sigma / length, path.time)
        on_path, other = (
            heun_flow(TwoPoints(), levels, unit_noise()) for levels in (path, preserving)
        )
        np.testing.assert_allclose(other, on_path, rtol=1e-9, atol=1e-11)


@every_sampler
def test_every_sampler_starts_where_no_image_is_left(name):
    """Exactly where the ODE or the distribution of the data says, for many steps."""
    path, noise = linear_path(128), jnp.float32(unit_noise((4000, 2, 2, 1)))
    sampler = get_sampler(name)
    found = np.asarray(sampler(TEACHER, path, noise, KEY), np.float64)
    if sampler.deterministic:
        # DDIM-AFS takes the data for standard normal at first.
        np.testing.assert_allclose(found, ode_map(path, noise, MEAN, STD), atol=0.03)
        assert np.all(np.isfinite(sampler(TEACHER, path, noise, clip=1.0)))
    elif name == "ddpm":
        np.testing.assert_allclose([found.mean(), found.std()], [MEAN, STD], atol=0.03)
    else:  # renoising keeps predictions of the mean: the spread is lost, and nothing else
        np.testing.assert_allclose(found.mean(), MEAN, atol=0.03)
        assert found.std() < STD


def test_inversion_ends_where_no_image_is_left():
    path, noise = linear_path(64), jnp.float32(unit_noise())
    start = jnp.asarray(ode_map(path, noise, MEAN, STD), jnp.float32)
    found = ddim_inversion(TEACHER, noising(path), start, iterations=4)
    np.testing.assert_allclose(found, noise, atol=0.1)


# ------------------------------------------------------------------------------- times and losses


@pytest.mark.parametrize(
    ("hyper", "expected"),
    [
        ({"levels": "logit_normal"}, lambda n, u: 1 / (1 + np.exp(-n))),
        (
            {"levels": "logit_normal", "time_mean": -0.4, "time_std": 1.5},
            lambda n, u: 1 / (1 + np.exp(0.4 - 1.5 * n)),
        ),
        ({"levels": "shifted", "time_shift": 3.0}, lambda n, u: 3 * u / (1 + 2 * u)),
        (
            {"levels": "logit_normal", "time_shift": 3.0},
            lambda n, u: (lambda t: 3 * t / (1 + 2 * t))(1 / (1 + np.exp(-n))),
        ),
        ({"levels": "uniform"}, lambda n, u: u),
    ],
)
def test_times_have_the_published_laws(hyper, expected):
    """Quantiles of t against those of the definition, whatever levels the table has."""
    tables = make_level_tables(linear_path(2000), np.arange(2001), rows=2010)
    keys = jax.random.split(jax.random.key(0), 20_000)
    law = Denoising(**hyper).level_law
    t = np.asarray(tables.student.sigma)[np.asarray(draw_level(keys, tables, law))]
    rng = np.random.default_rng(0)
    wanted = expected(rng.standard_normal(200_000), rng.uniform(size=200_000))
    at = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(np.quantile(t, at), np.quantile(wanted, at), atol=0.015)


def test_laws_of_a_range_are_cut_off_at_its_ends():
    path = linear_path(64)
    for low, high in ((1, 8), (60, 64)):
        tables = dataclasses.replace(
            make_level_tables(path, np.arange(65)), low=jnp.int32(low), high=jnp.int32(high)
        )
        keys = jax.random.split(jax.random.key(1), 4000)
        law = Denoising(levels="shifted", time_shift=2.0).level_law
        index = np.asarray(draw_level(keys, tables, law))
        u = path.sigma / (2 - path.sigma)  # the share of draws below t
        wanted = np.diff(u[low - 1 : high + 1]) / (u[high] - u[low - 1])
        found = np.bincount(index, minlength=65)[low : high + 1] / len(index)
        np.testing.assert_allclose(found, wanted, atol=0.03)
        assert index.min() >= low
        assert index.max() <= high


@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_the_exact_velocity_of_gaussian_data_is_where_the_loss_is_least(t):
    """E[(v - eps + x0)^2] over v = p + q z, by Gauss-Hermite quadrature, exact here."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    x, e = (m.ravel() for m in np.meshgrid(MEAN + STD * nodes, nodes))
    w = np.outer(weights, weights).ravel() / weights.sum() ** 2
    x, e = (jnp.asarray(v, jnp.float32).reshape(-1, 1, 1, 1) for v in (x, e))
    level = jax.tree.map(lambda v: jnp.full(len(w), v), level_at(t, np.float32))
    z, distance = add_noise(x, e, level), PredictionDistance("flow")

    def loss(line):
        said = convert("flow", line[0] + line[1] * z, z, level)
        return jnp.asarray(w, jnp.float32) @ distance(said, Prediction(x, e), z, level)

    variance = (1 - t) ** 2 * STD**2 + t**2
    slope = (t - (1 - t) * STD**2) / variance
    exact = jnp.asarray([-MEAN - slope * (1 - t) * MEAN, slope], jnp.float32)
    exact_from_denoiser = output_of("flow", TEACHER(z, level), z, level)
    np.testing.assert_allclose(exact[0] + exact[1] * z, exact_from_denoiser, atol=2e-5)
    np.testing.assert_allclose(jax.grad(loss)(exact), 0.0, atol=2e-5)
    np.testing.assert_allclose(loss(exact), STD**2 / variance, rtol=1e-4)


def test_uniform_flow_matching_weights_x0_by_the_inverse_square_of_t():
    tables = make_level_tables(linear_path(4), np.arange(5))
    flow, x0 = (
        Denoising(error=error).regression_loss(
            {"student": tiny.tiny_denoiser(prediction="flow")}, tiny.batch(16), tables
        )[0]
        for error in ("flow", "x0")
    )
    index = draw_level(tiny.batch(16).key("level"), tables, Denoising().level_law)
    t = np.asarray(tables.student.sigma)[np.asarray(index)]
    np.testing.assert_allclose(flow * t**2, x0, rtol=1e-4)


@pytest.mark.parametrize("weight", WEIGHTS[1:])
def test_a_weight_is_the_same_loss_in_every_error_on_the_straight_path(weight):
    """Also at alpha = 0, where eps has no error and x0 stands in for it."""
    level = jax.tree.map(lambda v: jnp.asarray(v), level_at([0.1, 0.6, 1.0], np.float32))
    z = jnp.asarray(images(3), jnp.float32)
    one, two = (convert("flow", jnp.asarray(images(i), jnp.float32), z, level) for i in (1, 2))
    expected = PredictionDistance("x0", weight)(one, two, z, level)
    for error in ERRORS:
        found = PredictionDistance(error, weight)(one, two, z, level)
        np.testing.assert_allclose(found, expected, rtol=2e-4)
        gradient = jax.grad(
            lambda v, error=error: jnp.sum(
                PredictionDistance(error, weight)(convert("flow", v, z, level), two, z, level)
            )
        )(jnp.asarray(images(1), jnp.float32))
        assert np.all(np.isfinite(gradient)), error


# ---------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"time_shift": 2.0}, "time_shift=2.0 has no effect: objective.levels is 'uniform'"),
        ({"levels": "shifted", "time_std": 2.0}, "time_std=2.0 has no effect"),
        ({"levels": "lognormal", "time_mean": 1.0}, "time_mean=1.0 has no effect"),
        ({"levels": "logit_normal", "time_std": 0.0}, "time_std=0.0 must be above 0"),
        ({"levels": "shifted", "time_shift": 0.0}, "time_shift=0.0 must be above 0"),
        ({"levels": "logit-normal"}, "Did you mean 'logit_normal'"),
        ({"error": "flaw"}, "Did you mean 'flow'"),
    ],
)
def test_settings_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        make_objective({"name": "denoising", **hyper})


def test_laws_that_are_off_stay_out_of_the_identity_of_a_stage():
    off = {"time_mean", "time_std", "time_shift"}
    assert off <= set(Denoising().inert_hparams())
    assert not off & set(Denoising(levels="logit_normal").inert_hparams())
    assert off & set(Denoising(levels="shifted").inert_hparams()) == {"time_mean", "time_std"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction": "eps"}, "prediction='eps', but the noisiest level has alpha=0"),
        ({"objective": {"name": "pid"}}, "noisiest level has alpha=0, and the path of this"),
        (
            {"objective": {"name": "ct", "step_weight": "inverse_step"}},
            "noisiest level has alpha=0, and objective.step_weight='inverse_step' is 0 there",
        ),
    ],
)
def test_what_needs_an_image_in_the_noisiest_level_is_refused(changes, words, tmp_path):
    full = tiny_settings()
    path = ScheduleSettings(name="linear_path", steps=16)
    name = "teacher" if "prediction" in changes else "student"
    stages = {**full.stages, name: dataclasses.replace(full.stages[name], **changes)}
    wanted = dataclasses.replace(full, stages=stages, schedule=path)
    with pytest.raises(ConfigError, match=words):
        plans_of(wanted, tmp_path / "run")
    cosine = dataclasses.replace(wanted, schedule=ScheduleSettings(name="cosine", steps=16))
    if name == "student":
        plans_of(cosine, tmp_path / "run")


def test_grids_of_the_path_are_rows_of_it():
    path = linear_path(12)
    student = subsequence(path, make_grid(path, 4))
    np.testing.assert_array_equal(student.sigma, path.sigma[[0, 3, 6, 9, 12]])
