"""Consistency models: fixed points and errors in closed form, curricula, bad settings.

Data are N(0.3, 0.7^2). Expected numbers come from a float64 script that has no code in common with
the library.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import struct
from gaussian import GaussianDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill.diffusion import Prediction, add_noise, expand, from_x0
from ddistill.errors import ConfigError
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.consistency import doubling_levels, ect_level, ect_ratio
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.objectives.states import State
from ddistill.recipes import path_cifar
from ddistill.schedules import cosine, karras, make_schedule

MEAN, STD = 0.3, 0.7
TEACHER = GaussianDenoiser(MEAN, STD)
# Gauss-Hermite nodes of two independent standard normal numbers: exact for what is quadratic.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
X, E = (x.ravel() for x in np.meshgrid(_NODES, _NODES))
W = np.outer(_WEIGHTS, _WEIGHTS).ravel() / np.sum(_WEIGHTS) ** 2


@struct.dataclass
class Affine:
    """A student that says x0 = offset + slope z, with one pair a level."""

    offset: jax.Array
    slope: jax.Array
    times: jax.Array

    def __call__(self, z, level, cond=None, *, key=None):
        i = jnp.argmin(jnp.abs(jnp.atleast_1d(level.time)[:, None] - self.times[1:]), axis=1) + 1
        return from_x0(expand(self.offset[i], z) + expand(self.slope[i], z) * z, z, level)


def images(values):
    return jnp.asarray(np.asarray(values, np.float32).reshape(-1, 1, 1, 1))


def state_at(objective, tables, i, x, noise):
    """The state of examples with clean images `x` and `noise` at level `i`."""
    index = jnp.full((len(x),), i)
    index, below = objective.pair_of_levels(index, tables)
    level = tables.student.at(index)
    data = Prediction(images(x), images(noise))
    z = add_noise(data.x0, data.eps, level)
    return State(z, index, level, tables.teacher.at(tables.grid[index]), None, data, below=below)


def fixed_point(name, points, **hyper):
    """Standard deviation of the one-step samples of an affine student that has converged.

    The target of a level depends on lower levels alone, so levels are solved one after another:
    the least-squares line of the target over z.
    """
    schedule = karras(points)
    tables = make_level_tables(schedule, np.arange(points + 1))
    objective = make_objective({"name": name, **hyper}).prepare(StageFacts(np.arange(points + 1)))
    offset, slope = np.zeros(points + 1), np.ones(points + 1)
    for i in range(1, points + 1):
        student = Affine(jnp.asarray(offset), jnp.asarray(slope), jnp.asarray(schedule.time))
        state = state_at(objective, tables, i, MEAN + STD * X, E)
        networks = {"teacher": TEACHER, "target": student}
        y = np.asarray(objective.target(networks, state, tables).x0, np.float64).ravel()
        z = np.asarray(state.z, np.float64).ravel()
        centred = z - W @ z
        slope[i] = (W @ (centred * y)) / (W @ centred**2)
        offset[i] = W @ y - slope[i] * (W @ z)
    top = float(schedule.sigma[-1])
    np.testing.assert_allclose(offset[-1] + slope[-1] * MEAN, MEAN, atol=1e-3)
    return slope[-1] * np.sqrt(STD**2 + top**2)


@pytest.mark.parametrize(
    ("points", "euler", "heun"),
    [(5, 0.3229, 1.508), (10, 0.5184, 0.8391), (18, 0.5969, 0.7349), (40, 0.6530, 0.7062)],
)
def test_a_converged_student_has_the_spread_of_its_solver(points, euler, heun):
    """CT and CD by Euler's method lose spread on few levels, and CD by Heun's method adds some."""
    np.testing.assert_allclose(fixed_point("ct", points), euler, atol=1e-3)
    np.testing.assert_allclose(fixed_point("cd", points, solver="ddim"), euler, atol=1e-3)
    np.testing.assert_allclose(fixed_point("cd", points, solver="heun"), heun, atol=1e-3)


def ideal(z, level):
    """The exact consistency function: where the path through `z` ends."""
    spread = np.sqrt((np.asarray(level.alpha) * STD) ** 2 + np.asarray(level.sigma) ** 2)
    return MEAN + STD / spread * (np.asarray(z) - np.asarray(level.alpha) * MEAN)


@pytest.mark.parametrize(
    ("points", "solver", "expected"),
    [(18, "ddim", 0.110), (18, "heun", 0.034), (40, "ddim", 0.048), (40, "heun", 0.0062)],
)
def test_the_exact_function_is_wrong_by_the_error_of_the_teachers_steps(points, solver, expected):
    schedule = karras(points)
    tables = make_level_tables(schedule, np.arange(points + 1))
    objective = make_objective({"name": "cd", "solver": solver}).prepare(
        StageFacts(np.arange(points + 1))
    )

    def exact(z, level, cond=None, *, key=None):
        spread = jnp.sqrt((level.alpha * STD) ** 2 + level.sigma**2)
        image = MEAN + expand(STD / spread, z) * (z - expand(level.alpha, z) * MEAN)
        return from_x0(image, z, level)

    index = jnp.arange(2, points + 1)
    level = tables.student.at(index)
    path = MEAN + np.sqrt(STD**2 + np.asarray(level.sigma) ** 2)
    state = State(images(path), index, level, level, None, None, below=index - 1)
    found = objective.target({"teacher": TEACHER, "target": exact}, state, tables).x0
    error = np.sum(np.abs(np.asarray(found).ravel() - (MEAN + STD)))
    np.testing.assert_allclose(error, expected, atol=5e-4 if expected > 0.01 else 5e-5)


def test_ct_and_cd_by_eulers_method_have_equal_mean_gradients_and_unlike_variances():
    points = 10
    schedule = karras(points)
    tables = make_level_tables(schedule, np.arange(points + 1))
    student = Affine(
        jnp.full(points + 1, 0.1), jnp.linspace(1.0, 0.1, points + 1), jnp.asarray(schedule.time)
    )
    found = {}
    for name, hyper in (("ct", {}), ("cd", {"solver": "ddim"})):
        objective = make_objective({"name": name, **hyper}).prepare(
            StageFacts(np.arange(points + 1))
        )
        state = state_at(objective, tables, 4, MEAN + STD * X, E)
        target = objective.target({"teacher": TEACHER, "target": student}, state, tables).x0
        error = student(state.z, state.level).x0 - target
        found[name] = np.asarray(error * state.z, np.float64).ravel()
    np.testing.assert_allclose(W @ found["ct"], W @ found["cd"], rtol=1e-3)
    spread = {k: W @ (v - W @ v) ** 2 for k, v in found.items()}
    assert spread["ct"] > 1.05 * spread["cd"]


# -------------------------------------------------------------------------------- boundaries


def loss(objective, student, target, tables, batch=None, teacher=None):
    networks = {"student": student, "target": target, "teacher": teacher or tiny.tiny_denoiser(9)}
    return objective.regression_loss(networks, batch or tiny.batch(6), tables)[0]


def test_the_lowest_level_is_compared_with_the_image_itself():
    tables = tiny.tables(levels=1)
    grid = np.asarray(tables.grid)[:2]
    batch = tiny.batch(4)
    ct = make_objective({"name": "ct"}).prepare(StageFacts(grid))
    state = ct.state({}, batch, tables)
    target = ct.target({"target": tiny.tiny_denoiser(2)}, state, tables)
    np.testing.assert_allclose(target.x0, batch.image, atol=1e-6)
    # One level: CD regresses onto the teacher's image, whichever its solver is.
    teacher = tiny.tiny_denoiser(3)
    for solver in ("ddim", "heun"):
        cd = make_objective({"name": "cd", "solver": solver}).prepare(StageFacts(grid))
        networks = {"target": tiny.tiny_denoiser(2), "teacher": teacher}
        found = cd.target(networks, state, tables).x0
        expected = teacher(state.z, state.teacher_level).x0
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_skip_over_all_levels_is_one_teacher_step_to_the_end():
    tables = tiny.tables(levels=4)
    objective = make_objective({"name": "cd", "solver": "ddim", "level_skip": 4}).prepare(
        StageFacts(np.arange(5))
    )
    teacher = tiny.tiny_denoiser(3)
    state = objective.state({}, tiny.batch(8), tables)
    networks = {"target": tiny.tiny_denoiser(2), "teacher": teacher}
    found = objective.target(networks, state, tables).x0
    expected = teacher(state.z, state.teacher_level).x0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_reaches_the_target_and_rate_0_is_the_student_as_a_constant():
    tables, student = tiny.tables(levels=4), tiny.tiny_denoiser(1)
    objective = make_objective({"name": "cd"}).prepare(StageFacts(np.arange(5)))
    assert objective.auxiliaries["target"].rate == 0.0

    def total(own, other):
        return jnp.sum(
            loss(
                objective,
                student.replace(params=own),
                student.replace(params=other),
                tables,
            )
        )

    own, other = jax.grad(total, argnums=(0, 1))(student.params, student.params)
    assert all(float(jnp.max(jnp.abs(x))) == 0.0 for x in jax.tree.leaves(other))
    assert any(float(jnp.max(jnp.abs(x))) > 0.0 for x in jax.tree.leaves(own))


def test_student_and_target_drop_the_same_values():
    """Networks that answer with numbers drawn from their key agree wherever both are called."""
    tables = tiny.tables(levels=4)

    def network(z, level, cond=None, *, key=None):
        return from_x0(jnp.broadcast_to(jax.random.normal(key, z.shape[1:]), z.shape), z, level)

    objective = make_objective({"name": "ct"}).prepare(StageFacts(np.arange(5)))
    batch = tiny.batch(16)
    state = objective.state({}, batch, tables)
    values = np.asarray(loss(objective, network, network, tables, batch))
    np.testing.assert_allclose(values[np.asarray(state.index) > 1], 0.0, atol=1e-9)
    assert np.all(values[np.asarray(state.index) == 1] > 0)


# ------------------------------------------------------------------- distances, weights, curricula


def test_distances_and_weights_are_the_published_ones():
    tables = tiny.tables(levels=4)
    batch, networks = tiny.batch(6), (tiny.tiny_denoiser(1), tiny.tiny_denoiser(2))
    usual = make_objective({"name": "ct"}).prepare(StageFacts(np.arange(5)))
    state = usual.state({}, batch, tables)
    ours = np.asarray(networks[0](state.z, state.level, key=batch.dropout_key).x0, np.float64)
    theirs = np.asarray(usual.target({"target": networks[1]}, state, tables).x0, np.float64)
    difference = (ours - theirs).reshape(6, -1)
    n = difference.shape[1]
    c = 0.00054 * np.sqrt(n)
    noise = np.asarray(tables.student.sigma / tables.student.alpha, np.float64)
    here, below = noise[np.asarray(state.index)], noise[np.asarray(state.below)]
    expected = {
        ("l2", "uniform"): np.mean(difference**2, axis=1),
        ("l1", "uniform"): np.mean(np.abs(difference), axis=1),
        ("pseudo_huber", "uniform"): (np.sqrt(np.sum(difference**2, axis=1) + c * c) - c) / n,
        ("pixel_huber", "uniform"): np.mean(np.sqrt(difference**2 + 1e-6) - 1e-3, axis=1),
        ("l2", "inverse_step"): np.mean(difference**2, axis=1) / (here - below),
        ("l2", "edm"): np.mean(difference**2, axis=1) * (here**2 + 0.25) / (0.5 * here) ** 2,
    }
    for (distance, weight), values in expected.items():
        more = {"huber": 1e-3} if distance == "pixel_huber" else {}
        hyper = {"name": "ct", "distance": distance, "step_weight": weight, **more}
        objective = make_objective(hyper).prepare(StageFacts(np.arange(5)))
        np.testing.assert_allclose(loss(objective, *networks, tables, batch), values, rtol=2e-4)


def test_a_norm_without_a_constant_has_a_finite_gradient_where_images_agree():
    tables = tiny.tables(levels=4)
    objective = make_objective({"name": "ct", "distance": "pseudo_huber", "huber": 0.0})
    objective = objective.prepare(StageFacts(np.arange(5)))

    def total(value):
        def same(z, level, cond=None, *, key=None):
            return from_x0(jnp.full_like(z, value), z, level)

        return jnp.sum(loss(objective, same, same, tables))

    assert np.isfinite(jax.grad(total)(0.3))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_doubling_curriculum_ends_at_neighbouring_levels(data):
    count = data.draw(st.integers(1, 40))
    first = data.draw(st.integers(1, count))
    tables = make_level_tables(cosine(64), np.arange(count + 1), rows=65).with_steps(1000)
    index = np.minimum(np.arange(1, 41), count)  # of one shape, which compiles once
    before, mapped = 0, jax.jit(doubling_levels)
    for step in (0, 250, 500, 750, 999):
        at = tables.replace(step=jnp.int32(step))
        above, below = (np.asarray(x) for x in mapped(jnp.asarray(index), at, first))
        assert np.all((below < index) & (index <= above))
        intervals = len(set(zip(above.tolist(), below.tolist())))
        assert intervals >= before
        before = intervals
        if step == 0:
            assert intervals == first or (first * 2 > count and intervals == count)
    assert intervals == count


def test_the_doubling_curriculum_doubles_in_equal_parts():
    tables = make_level_tables(karras(80), np.arange(81)).with_steps(400)
    index = jnp.arange(1, 81)
    counts = []
    for step in (0, 99, 100, 199, 200, 299, 300, 399):
        pairs = doubling_levels(index, tables.replace(step=jnp.int32(step)), 10)
        counts.append(len(set(zip(*(x.tolist() for x in pairs)))))
    assert counts == [10, 10, 20, 20, 40, 40, 80, 80]


@pytest.mark.parametrize(
    ("q", "part", "expected"),
    [
        (2.0, 0, [0.0, 0.0, 0.023, 0.5]),
        (2.0, 3, [0.694, 0.749, 0.878, 0.9375]),
        (2.0, 7, [0.981, 0.984, 0.992, 0.996]),
        (256.0, 0, [0.981, 0.984, 0.992, 0.996]),
    ],
)
def test_ects_ratio_of_noise_levels(q, part, expected):
    noise = jnp.asarray([0.05, 0.5, 2.0, 20.0])
    np.testing.assert_allclose(ect_ratio(noise, q, part), expected, atol=6e-4)


def test_ects_target_is_the_nearest_level_below_the_students():
    tables = make_level_tables(karras(64), np.arange(65), rows=80).with_steps(800)
    index = jnp.arange(1, 65)
    noise = np.asarray(tables.student.sigma / tables.student.alpha, np.float64)[:65]
    for step, part in ((0, 0), (99, 0), (100, 1), (799, 7)):
        found = np.asarray(ect_level(index, tables.replace(step=jnp.int32(step)), 2.0, 8))
        wanted = noise[1:] * np.asarray(ect_ratio(jnp.asarray(noise[1:]), 2.0, part))
        for i, j in zip(range(1, 65), found):
            assert j == np.abs(noise[:i] - wanted[i - 1]).argmin()
    # At the start little noise is compared with the data: plain denoising.
    start = np.asarray(ect_level(index, tables.replace(step=jnp.int32(0)), 2.0, 8))
    assert np.all(start[noise[1:] < np.log(7.0)] == 0)
    assert float(ect_ratio(jnp.asarray([2.0]), 2.0, 0)[0]) > 0


def test_ects_last_steps_are_as_long_as_wanted_on_the_levels_of_its_config():
    """Within 5 % on average; a table of 1,000 rows would make them a third too long."""
    made = path_cifar.ect_cifar().schedule
    levels = make_schedule(made.name, made.steps, **made.options)
    tables = make_level_tables(levels, np.arange(made.steps + 1)).with_steps(8)
    tables = tables.replace(step=jnp.int32(7))
    index = jnp.arange(made.steps // 5, made.steps + 1)
    noise = np.asarray(levels.sigma, np.float64)
    steps = 1.0 - noise[ect_level(index, tables, 2.0, 8)] / noise[index]
    wanted = 1.0 - np.asarray(ect_ratio(jnp.asarray(noise[index]), 2.0, 7))
    assert np.mean(steps / wanted) == pytest.approx(1.0, abs=0.05)


# --------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"name": "cd", "solver": "euler"}, "solver"),
        ({"name": "cd", "distance": "lpips"}, "distance"),
        ({"name": "ct", "target_ema": 1.0}, r"target_ema=1.0 must be in \[0, 1\)"),
        ({"name": "ct", "level_skip": 0}, "level_skip=0 must be 1 or more"),
        ({"name": "ct", "ect_q": 1.0, "curriculum": "ect"}, "ect_q=1.0 must be above 1"),
        (
            {"name": "ct", "first_intervals": 20},
            "first_intervals=20 has no effect: objective.curriculum",
        ),
        ({"name": "ct", "ect_q": 4.0}, "ect_q=4.0 has no effect"),
        ({"name": "ct", "curriculum": "ect", "level_skip": 2}, "level_skip=2 has no effect"),
        ({"name": "ct", "huber": 0.1}, "huber=0.1 has no effect: objective.distance is 'l2'"),
        ({"name": "ct", "student_states": 0.5}, "have no noise of their own"),
        (
            {"name": "ct", "log_mean": -0.5},
            "log_mean=-0.5 has no effect: objective.law",
        ),
        ({"name": "ct", "law": "lognormal", "log_std": 0.0}, "log_std=0.0 must be above 0"),
        ({"name": "ct", "solver": "heun"}, "solver is not a setting of 'ct'"),
    ],
)
def test_settings_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        make_objective(hyper)


def test_grids_and_predictions_that_cannot_work_are_refused():
    with pytest.raises(
        ConfigError, match=r"level_skip=5, but the student's grid has 4 levels.*1 to 4"
    ):
        make_objective({"name": "ct", "level_skip": 5}).prepare(StageFacts(np.arange(5)))
    doubling = {"name": "ct", "curriculum": "doubling", "first_intervals": 5}
    with pytest.raises(ConfigError, match="first_intervals=5, but the student's grid has 4 levels"):
        make_objective(doubling).prepare(StageFacts(np.arange(5)))
    objective = make_objective({"name": "cd"}).prepare(StageFacts(np.arange(5)))
    with pytest.raises(ConfigError, match=r"prediction='x0'.*Allowed: eps, v, edm"):
        objective.prepare(StageFacts(np.arange(5), NetworkFacts(student_prediction="x0")))
    assert objective.requires.all_levels


@pytest.mark.parametrize(
    ("hyper", "calls"),
    [
        ({"name": "ct"}, (0, 0)),
        ({"name": "cd", "solver": "ddim"}, (1, 2)),
        ({"name": "cd"}, (2, 4)),
        ({"name": "cd", "teacher_states": 0.5}, (2 + 3, 4 + 6)),
    ],
)
def test_calls_of_the_teacher(hyper, calls):
    objective = make_objective(hyper).prepare(StageFacts(np.arange(5)))
    assert (objective.teacher_calls(), objective.teacher_calls(2)) == calls
