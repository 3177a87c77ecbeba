"""BOOT and PID: closed forms of a Gaussian, gradients, sampling in one call, wrong settings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gaussian import GaussianDenoiser

from ddistill import samplers
from ddistill.errors import ConfigError
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.boot import next_signal
from ddistill.objectives.from_noise import Path
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.objectives.pid import ode_x0
from ddistill.schedules import Level, cosine, karras, make_grid, subsequence

MEAN, STD = 0.3, 0.7
TEACHER = GaussianDenoiser(MEAN, STD)


@pytest.mark.parametrize(("count", "expected"), [(8, 0.8332), (64, 0.9163), (512, 0.9275)])
def test_exact_steps_of_boot_compose_to_the_end_of_the_path(count, expected):
    """First order in the step; the end of the path is m + c e = 0.93."""
    angle = np.linspace(np.pi / 2 - 1e-6, 1e-3, count + 1)
    levels = [Level(*(jnp.float32(f(a)) for f in (np.cos, np.sin)), jnp.float32(0)) for a in angle]
    noise = jnp.full((1, 1, 1, 1), 0.9)

    @jax.jit
    def step(signal, here, there):
        z = here.alpha * signal + here.sigma * noise
        return next_signal(signal, TEACHER(z, here), here, there)

    signal = TEACHER(levels[0].sigma * noise, levels[0]).x0
    np.testing.assert_allclose(signal.item(), MEAN, atol=1e-4)
    for here, there in itertools.pairwise(levels):
        signal = step(signal, here, there)
    np.testing.assert_allclose(signal.item(), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("count", "largest", "mean"), [(40, 0.0221, 0.0056), (250, 0.00335, 0.00084)]
)
def test_the_exact_path_leaves_pid_the_error_of_its_finite_differences(count, largest, mean):
    schedule = karras(count)
    sigma = np.asarray(schedule.sigma, np.float64)[1:][::-1]
    path = MEAN + np.sqrt(STD**2 + sigma**2) / np.sqrt(STD**2 + 80.0**2) * (48.0 - MEAN)
    signal = jnp.asarray(path - sigma * 48.0 / 80.0, jnp.float32)
    level = Level(jnp.ones(count), jnp.asarray(sigma, jnp.float32), jnp.zeros(count))
    here, there = (jax.tree.map(lambda x, s=s: x[s], level) for s in (slice(-1), slice(1, None)))
    found = ode_x0(signal[:-1], signal[1:], here, there)
    wanted = TEACHER(jnp.asarray(path[:-1], jnp.float32), here).x0
    error = np.abs(np.asarray(found - wanted))
    np.testing.assert_allclose(error.max(), largest, rtol=0.02)
    np.testing.assert_allclose(error.mean(), mean, rtol=0.03)


def networks(student, teacher=None):
    return {"student": student, "teacher": teacher or tiny.tiny_denoiser(2)}


def prepared(name, **hyper):
    return make_objective({"name": name, **hyper}).prepare(StageFacts(np.arange(5)))


@pytest.mark.parametrize("name", ["boot", "pid"])
def test_losses_see_no_image_and_the_student_sees_noise_alone(name):
    tables, batch = tiny.tables(levels=4), tiny.batch(5)
    seen = []
    student = tiny.tiny_denoiser(1)

    def watched(z, level, cond=None, *, key=None):
        seen.append((np.asarray(z), np.asarray(level.sigma), np.asarray(level.time)))
        return student(z, level, cond, key=key)

    objective = prepared(name)
    values, _ = objective.loss(networks(watched), batch, tables)
    blank = batch.replace(image=jnp.zeros_like(batch.image))
    np.testing.assert_array_equal(objective.loss(networks(student), blank, tables)[0], values)
    for z, sigma, _ in seen:
        np.testing.assert_array_equal(z, seen[0][0])
        np.testing.assert_array_equal(sigma, np.full(5, tables.student.at(4).sigma))
    assert any(np.any(time != seen[0][2]) for _, _, time in seen)
    assert not objective.requires.images


def test_the_gradient_of_pid_goes_through_both_evaluations():
    """Against central differences of the loss with the teacher's answers held fixed."""
    tables, batch = tiny.tables(levels=4), tiny.batch(4)
    objective, start = prepared("pid"), tiny.tiny_denoiser(1)
    answers = []

    def recorded(z, level, cond=None):
        answers.append(tiny.tiny_denoiser(2)(z, level, cond))
        return answers[-1]

    objective.loss(networks(start, recorded), batch, tables)

    def total(params):
        fixed = lambda z, level, cond=None: answers[0]  # noqa: E731
        values = objective.loss(networks(start.replace(params=params), fixed), batch, tables)[0]
        return jnp.sum(values)

    gradient = jax.jit(jax.grad(total))(start.params)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), start.params
    )
    step, jitted = 3e-3, jax.jit(total)
    ends = [
        jax.tree.map(lambda p, d, s=s: p + s * d, start.params, direction) for s in (step, -step)
    ]
    slope = (jitted(ends[0]) - jitted(ends[1])) / (2 * step)
    inner = sum(
        jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
    )
    np.testing.assert_allclose(inner, slope, rtol=2e-2)
    # Alone, the gradient through the first evaluation is another one.
    assert abs(float(inner)) > 1e-6


def test_boot_with_a_teacher_of_one_answer_wants_this_answer_everywhere():
    tables, batch = tiny.tables(levels=4), tiny.batch(4)
    point = GaussianDenoiser(0.25, 0.0)
    exact = lambda z, level, cond=None, *, key=None: point(z, level)  # noqa: E731
    for name in ("boot",):
        values, metrics = prepared(name).loss(networks(exact, point), batch, tables)
        np.testing.assert_allclose(values, 0.0, atol=1e-10)
        assert set(metrics) == {"signal_distance", "boundary_distance"}


def test_boot_weights_steps_of_squared_distances_alone():
    for distance in ("pseudo_huber", "classifier"):
        with pytest.raises(ConfigError, match=f"{distance}' set step_weight='uniform'"):
            make_objective({"name": "boot", "distance": distance})
        uniform = {"name": "boot", "distance": distance, "step_weight": "uniform"}
        assert make_objective(uniform).distance == distance


def test_boot_weights_a_step_by_the_inverse_square_of_its_share():
    tables, batch, student = tiny.tables(levels=4), tiny.batch(6), tiny.tiny_denoiser(1)
    plain, weighted = (
        prepared("boot", boundary_weight=0.0, step_weight=weight).loss(
            networks(student), batch, tables
        )[0]
        for weight in ("uniform", "inverse_square")
    )
    path = Path.of(batch, tables)
    assert path.noise.shape == batch.image.shape
    ratio = np.asarray(plain / weighted)
    rho = np.asarray(tables.student.alpha / tables.student.sigma, np.float64)[:5]
    shares = {round(float((1 - rho[i] / rho[i - 1]) ** 2), 4) for i in (2, 3, 4)}
    assert {round(float(x), 4) for x in ratio} <= shares


def test_one_call_generates_the_image_at_the_cleanest_level():
    student, schedule = tiny.tiny_denoiser(1), cosine(32)
    grid = make_grid(schedule, 4)
    rows = samplers.from_noise.rows(4)
    assert (tuple(rows), samplers.nfe("from_noise", 4)) == ((0, 1, 4), 1)
    levels = subsequence(subsequence(schedule, grid), np.asarray(rows))
    noise = jax.random.normal(jax.random.key(0), (3, *tiny.IMAGE))
    tables = make_level_tables(schedule, grid)
    top = tables.student.at(4)
    level = Level(top.alpha, top.sigma, tables.student.at(1).time)
    wanted = student(noise, jax.tree.map(lambda x: jnp.broadcast_to(x, (3,)), level)).x0
    with pytest.raises(ValueError, match=r"rows \(0, 1, 8\).* got a schedule of 4 steps"):
        samplers.from_noise(student, subsequence(schedule, grid), noise)
    for loop in ("dispatch", "scan", "unroll"):
        found = samplers.from_noise(student, levels, noise, loop=loop)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["boot", "pid"])
def test_needs_and_costs(name):
    objective = prepared(name)
    calls = {"boot": 2, "pid": 1}[name]
    assert (objective.teacher_calls(), objective.teacher_calls(2)) == (calls, 2 * calls)
    assert objective.sampler == "from_noise"
    assert objective.requires.all_levels
    with pytest.raises(ConfigError, match="a grid of one step"):
        make_objective({"name": name}).prepare(StageFacts(np.arange(2)))
    with pytest.raises(ConfigError, match=r"prediction='eps'.*Allowed: v, x0, edm"):
        objective.prepare(StageFacts(np.arange(5), NetworkFacts(student_prediction="eps")))
    with pytest.raises(ConfigError, match="distance"):
        make_objective({"name": name, "distance": "lpips"})
