"""SFDDM's properties: methods that copy their teacher lose nothing, and gradients stay at home."""

import itertools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gaussian import GaussianDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill.diffusion import (
    Prediction,
    ddim_step,
    from_x0,
    multistep_x0,
    one_step_target,
)
from ddistill.errors import ConfigError
from ddistill.objectives import LevelTables, make_level_tables, make_objective
from ddistill.objectives.base import static_part
from ddistill.objectives.parts import StageFacts
from ddistill.objectives.sfddm import SFDDM
from ddistill.samplers import dpm_solver_pp
from ddistill.schedules import cosine, make_grid, subsequence

RELEASED = {"output_weight": 1.0, "output": "eps", "output_norm": "l1", "feature_weight": 1.0}


def prepared(tables: LevelTables, **hyper) -> SFDDM:
    return SFDDM(**hyper).prepare(StageFacts(np.asarray(tables.grid)[: int(tables.count) + 1]))


def loss(objective, student, teacher, tables, batch=None):
    networks = {"student": student, "teacher": teacher}
    return objective.regression_loss(networks, batch or tiny.batch(), tables)


@pytest.mark.parametrize("jitted", [True, False])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "quadratic"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_student_equal_to_teacher_with_mapped_time_loses_exactly_nothing(
    spacing, prediction, jitted
):
    tables = tiny.tables(spacing=spacing)
    objective = prepared(tables, **{**RELEASED, "output": prediction}, hidden_weight=0.0)
    teacher = tiny.tiny_denoiser(prediction=prediction)
    compute = jax.jit(lambda s, t: loss(objective, s, t, tables)[0]) if jitted else None
    if compute is not None:
        values = compute(teacher, teacher)
    else:
        values, _ = loss(objective, teacher, teacher, tables)
    np.testing.assert_array_equal(values, 0.0)


def test_identity_grid_with_all_terms_loses_nothing():
    tables = tiny.tables(steps=16, levels=16)
    objective = prepared(tables, **RELEASED, hidden_weight=1.0, substeps=1, solver="ddim")
    values, _ = loss(objective, tiny.tiny_denoiser(), tiny.tiny_denoiser(), tables)
    np.testing.assert_allclose(values, 0.0, atol=1e-10)


def test_own_index_as_time_makes_a_copy_of_the_teacher_wrong():
    tables = tiny.tables(time="index")
    objective = prepared(tables, **RELEASED, hidden_weight=0.0)
    values, _ = loss(objective, tiny.tiny_denoiser(), tiny.tiny_denoiser(), tables)
    assert float(values.min()) > 1e-3


def test_l1_of_a_constant_shift_is_its_size():
    tables = tiny.tables()
    objective = prepared(tables, **{**RELEASED, "feature_weight": 0.0}, hidden_weight=0.0)
    teacher = tiny.tiny_denoiser(prediction="eps")

    def student(z, level, cond=None, *, key=None):
        prediction = teacher(z, level, cond)
        return Prediction(x0=prediction.x0, eps=prediction.eps - 0.37)

    values, _ = loss(objective, student, teacher, tables)
    np.testing.assert_allclose(values, 0.37, rtol=1e-5)


@pytest.mark.parametrize("hyper", [{**RELEASED, "hidden_weight": 1.0, "substeps": 4}])
def test_teacher_gets_no_gradient_and_student_does(hyper):
    tables = tiny.tables()
    objective = prepared(tables, **hyper)

    def value(student_params, teacher_params):
        student = tiny.tiny_denoiser().replace(params=student_params)
        teacher = tiny.tiny_denoiser().replace(params=teacher_params)
        return loss(objective, student, teacher, tables)[0].mean()

    to_student, to_teacher = jax.grad(value, argnums=(0, 1))(
        tiny.tiny_params(1), tiny.tiny_params(0)
    )
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(to_teacher))
    assert all(float(jnp.abs(g).max()) > 0.0 for g in jax.tree.leaves(to_student))


def test_feature_term_does_not_reach_the_last_layer():
    tables = tiny.tables()
    objective = prepared(tables, feature_weight=1.0, hidden_weight=0.0)

    def value(params):
        student = tiny.tiny_denoiser().replace(params=params)
        return loss(objective, student, tiny.tiny_denoiser(0), tables)[0].mean()

    grads = jax.grad(value)(tiny.tiny_params(1))
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(grads["final"]))
    assert float(jnp.abs(grads["Dense_0"]["kernel"]).max()) > 0.0


def gaussian_affine(schedule, indices, mean, std):
    """Float64: the DDIM walk of N(mean, std^2) through `indices` (downward) as z -> a z + b."""
    alpha = np.asarray(schedule.alpha, np.float64)
    sigma = np.asarray(schedule.sigma, np.float64)
    a, b = 1.0, 0.0
    for i, j in itertools.pairwise(indices):
        gain = alpha[i] * std**2 / (alpha[i] ** 2 * std**2 + sigma[i] ** 2)
        # x0 = mean + gain (z - alpha mean); z' = alpha' x0 + sigma' (z - alpha x0) / sigma
        ratio = sigma[j] / sigma[i]
        slope = ratio + (alpha[j] - ratio * alpha[i]) * gain
        shift = (alpha[j] - ratio * alpha[i]) * mean * (1 - gain * alpha[i])
        a, b = slope * a, slope * b + shift
    return a, b


def multistep_affine(schedule, indices, before, mean, std):
    """The same walk by DPM-Solver++(2M), as arXiv 2211.01095 algorithm 2 writes it, in float64.

    `before` is the level of the prediction that the first step looks back to, which lies on the
    walk's own path; equal to `indices[0]` there is none.
    """
    alpha = np.asarray(schedule.alpha, np.float64)
    sigma = np.asarray(schedule.sigma, np.float64)

    def predicted(i, state):
        gain = alpha[i] * std**2 / (alpha[i] ** 2 * std**2 + sigma[i] ** 2)
        return np.array([gain * state[0], gain * state[1] + mean * (1 - gain * alpha[i])])

    def log_ratio(i):
        return np.log(alpha[i] / sigma[i])

    state = np.array([1.0, 0.0])
    previous = predicted(before, gaussian_affine(schedule, [indices[0], before], mean, std))
    for i, j in itertools.pairwise(indices):
        x0 = data = predicted(i, state)
        if sigma[j] > 0 and before != i:
            r = (log_ratio(i) - log_ratio(before)) / (log_ratio(j) - log_ratio(i))
            data = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        decay = np.exp(-(log_ratio(j) - log_ratio(i))) if sigma[j] > 0 else 0.0
        state = sigma[j] / sigma[i] * state - alpha[j] * (decay - 1) * data
        previous, before = x0, i
    return state


WALKS = {
    "ddim": {"solver": "ddim"},
    "default": {},
    "no past": {"lookback": False},
}


@pytest.mark.parametrize("walk_by", WALKS)
@settings(max_examples=12, deadline=None)
@given(levels=st.integers(1, 6), k=st.integers(1, 5), mean=st.floats(-0.5, 0.5))
def test_hidden_variable_term_is_zero_for_the_exact_student(walk_by, levels, k, mean):
    """The exact student of a Gaussian teacher is built here in float64 from the textbook form."""
    schedule = cosine(60)
    grid = make_grid(schedule, levels, "trailing")
    tables = make_level_tables(schedule, grid)
    objective = prepared(tables, substeps=k, **WALKS[walk_by])
    teacher = GaussianDenoiser(mean=mean, std=0.6)
    slopes, shifts = np.zeros(levels + 1), np.zeros(levels + 1)
    alpha, sigma = (np.asarray(x, np.float64) for x in (schedule.alpha, schedule.sigma))
    for n in range(1, levels + 1):
        t, s = int(grid[n]), int(grid[n - 1])
        walk = [(t * (k - j) + s * j + k // 2) // k for j in range(k + 1)]
        if walk_by == "ddim":
            a, b = gaussian_affine(schedule, walk, mean, 0.6)
        else:
            stride = (t - s + k // 2) // k if walk_by == "default" else 0
            a, b = multistep_affine(schedule, walk, min(t + stride, 60), mean, 0.6)
        denominator = alpha[s] - alpha[t] * sigma[s] / sigma[t]
        slopes[n] = (a - sigma[s] / sigma[t]) / denominator
        shifts[n] = b / denominator

    def student(z, level, cond=None, *, key=None):
        index = jnp.argmin(jnp.abs(tables.student.time[None] - level.time[:, None]), axis=1)
        shape = (-1, 1, 1, 1)
        x0 = jnp.asarray(slopes, jnp.float32)[index].reshape(shape) * z
        x0 = x0 + jnp.asarray(shifts, jnp.float32)[index].reshape(shape)
        eps = (z - level.alpha.reshape(shape) * x0) / level.sigma.reshape(shape)
        return Prediction(x0=x0, eps=eps)

    values, _ = loss(objective, student, teacher, tables)
    np.testing.assert_allclose(values, 0.0, atol=2e-8)
    if k > 1 and levels == 1:
        plain, _ = loss(objective, teacher, teacher, tables)
        assert float(plain.mean()) > 1e-4, "the teacher's own output must not pass for its walk"


def test_second_order_walk_is_nearer_to_the_exact_flow():
    """Endpoints of 6 steps against the probability flow of a Gaussian, known in closed form."""
    tables = tiny.tables(steps=60, levels=3)
    teacher, index = GaussianDenoiser(mean=0.3, std=0.5), jnp.array([2, 3, 2])
    z = jax.random.normal(jax.random.key(0), (3, *tiny.IMAGE))
    first = teacher(z, tables.student.at(index))
    spread = {}
    for level in (index, index - 1):
        here = tables.student.at(level)
        spread[id(level)] = jnp.sqrt(here.alpha**2 * 0.25 + here.sigma**2), here
    (top, a), (bottom, b) = spread.values()
    column = (-1, 1, 1, 1)
    exact = (z - 0.3 * a.alpha.reshape(column)) * (bottom / top).reshape(column)
    exact = exact + 0.3 * b.alpha.reshape(column)
    errors = {}
    for solver in ("ddim", "dpm_solver_pp"):
        objective = prepared(tables, substeps=6, solver=solver)
        state = tiny.state(z, index, tables, first)
        target = objective.target({"teacher": teacher}, state, tables)
        errors[solver] = float(jnp.abs(ddim_step(target, z, a, b) - exact).max())
    assert errors["dpm_solver_pp"] < 0.3 * errors["ddim"]


@pytest.mark.parametrize("levels, k", [(1, 6), (3, 2)])
def test_looking_back_continues_the_multistep_sampler(levels, k):
    """From the top the walk is DPM-Solver++; below, its past makes it second order at once."""
    tables = tiny.tables(steps=60, levels=levels)
    teacher = GaussianDenoiser(mean=0.3, std=0.5)
    z = jax.random.normal(jax.random.key(0), (1, *tiny.IMAGE))
    full = subsequence(tables.teacher, make_grid(tables.teacher, levels * k))
    expected, states = dpm_solver_pp(teacher, full, z, trajectory=True)
    found = {}
    for lookback in (False, True):
        objective = prepared(tables, substeps=k, lookback=lookback)
        index = jnp.array([max(1, levels - 1)])
        start = states[(levels - int(index[0])) * k]
        level = tables.student.at(index)
        state = tiny.state(start, index, tables, teacher(start, level))
        target = objective.target({"teacher": teacher}, state, tables)
        end = ddim_step(target, start, level, tables.student.at(index - 1))
        wanted = states[(levels - int(index[0]) + 1) * k]
        found[lookback] = float(jnp.abs(end - wanted).max())
    if levels == 1:
        assert max(found.values()) < 1e-5
        np.testing.assert_allclose(states[-1], expected)
    else:
        assert found[True] < 0.3 * found[False]


def test_walk_in_a_loop_folds_as_one_step_target_does():
    tables = tiny.tables(steps=60, levels=3)
    teacher, index = tiny.tiny_denoiser(prediction="x0"), jnp.array([3, 1, 2])
    z = jax.random.normal(jax.random.key(0), (3, *tiny.IMAGE))
    objective = prepared(tables, substeps=5, solver="ddim")
    levels = [objective.sub_level(j, index, tables) for j in range(6)]
    x0s, state_z = [], z
    for here, there in pairwise(levels):
        prediction = teacher(state_z, here)
        x0s.append(prediction.x0)
        state_z = ddim_step(prediction, state_z, here, there)
    state = tiny.state(z, index, tables, teacher(z, levels[0]))
    found = objective.target({"teacher": teacher}, state, tables)
    np.testing.assert_allclose(found.x0, one_step_target(x0s, levels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("lookback", [False, True])
def test_one_loop_makes_the_calls_of_a_walk_by_hand(k, lookback):
    """The first prediction, the look back and every sub-step, each with the past that it has."""
    tables = tiny.tables(steps=60, levels=3)
    teacher, index = GaussianDenoiser(mean=0.3, std=0.5), jnp.array([3, 1, 2])
    z = jax.random.normal(jax.random.key(0), (3, *tiny.IMAGE))
    objective = prepared(tables, substeps=k, lookback=lookback)
    levels = [objective.sub_level(j, index, tables) for j in range(k + 1)]
    first = teacher(z, levels[0])

    past = None
    if lookback:
        grid, total = tables.grid, tables.teacher.num_steps
        stride = (grid[index] - grid[index - 1] + k // 2) // k
        before = tables.teacher.at(jnp.minimum(grid[index] + stride, total))
        past = before, teacher(ddim_step(first, z, levels[0], before), before).x0
    state, used = z, []
    for here, there in itertools.pairwise(levels):
        x0 = teacher(state, here).x0
        used.append(x0 if past is None else multistep_x0(x0, past[1], past[0], here, there))
        past = here, x0
        state = ddim_step(from_x0(used[-1], state, here), state, here, there)

    expected = one_step_target(used, levels)
    for known in (first, None):
        given = tiny.state(z, index, tables, known)
        found = objective.target({"teacher": teacher}, given, tables)
        np.testing.assert_allclose(found.x0, expected, rtol=1e-5, atol=1e-5)


def test_students_that_look_back_and_that_do_not_share_their_program():
    """Both ask the network in one place, whatever the solver and k."""
    tables = tiny.tables(steps=60, levels=3)
    asked = []

    def teacher(z, level, cond):
        asked.append(z.shape)
        return GaussianDenoiser(mean=0.3, std=0.5)(z, level)

    walks = [prepared(tables, substeps=k, lookback=back) for k, back in ((6, False), (3, True))]
    assert static_part(walks[0]) == static_part(walks[1])
    state = tiny.state(jnp.zeros((3, *tiny.IMAGE)), [3, 1, 2], tables)
    walks[0].target({"teacher": teacher}, state, tables)
    assert len(asked) == 1


def test_one_substep_is_output_matching():
    tables = tiny.tables()
    hidden = prepared(tables, substeps=1, solver="ddim")
    output = prepared(tables, hidden_weight=0.0, output_weight=1.0)
    student, teacher = tiny.tiny_denoiser(1), tiny.tiny_denoiser(0)
    a, _ = loss(hidden, student, teacher, tables)
    b, _ = loss(output, student, teacher, tables)
    np.testing.assert_allclose(a, b, rtol=1e-4)


@given(steps=st.integers(4, 64), levels=st.integers(1, 4), k=st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_walk_visits_the_teachers_own_levels_in_order(steps, levels, k):
    grid = make_grid(cosine(steps), levels, "trailing")
    tables = make_level_tables(cosine(steps), grid)
    k = min(k, int(np.diff(grid).min()))
    objective = SFDDM(substeps=k).prepare(StageFacts(grid))
    index = jnp.arange(1, levels + 1)
    walk = [objective.sub_level(j, index, tables) for j in range(k + 1)]
    times = np.stack([np.asarray(level.time) for level in walk])
    assert np.all(np.diff(times, axis=0) < 0)
    np.testing.assert_array_equal(times[0], np.asarray(tables.student.time)[1 : levels + 1])
    np.testing.assert_array_equal(times[-1], np.asarray(tables.student.time)[:levels])


def test_zero_substeps_means_every_level_of_the_narrowest_interval():
    tables = tiny.tables(steps=32, levels=4)
    assert prepared(tables, substeps=0).substeps == 8
    assert prepared(tables, substeps=0).teacher_calls() == 9
    assert prepared(tables, substeps=0, lookback=False).teacher_calls() == 8
    assert prepared(tables, substeps=0, solver="ddim").teacher_calls() == 8
    assert prepared(tables, hidden_weight=0.0, output_weight=1.0).teacher_calls() == 1


@pytest.mark.parametrize("solver, calls_made", [("ddim", 5), ("dpm_solver_pp", 6)])
def test_teacher_is_called_no_more_than_stated(solver, calls_made):
    tables = tiny.tables()
    objective = prepared(tables, substeps=5, solver=solver, **RELEASED)
    teacher, calls = tiny.tiny_denoiser(), []

    class Counting:
        def __call__(self, z, level, cond=None, *, key=None):
            calls.append(z.shape[0])
            return teacher(z, level, cond)

        def with_features(self, taps):
            inner = teacher.with_features(taps)

            def call(z, level, cond=None, *, key=None):
                calls.append(z.shape[0])
                return inner(z, level, cond)

            return call

    with jax.disable_jit():
        loss(objective, tiny.tiny_denoiser(1), Counting(), tables)
    assert len(calls) == objective.teacher_calls() == calls_made


@pytest.mark.parametrize(
    "hyper, text",
    [
        ({"substeps": 9}, "objective.substeps=9.*only 8 teacher levels apart.*1 to 8"),
        ({"substeps": -1}, "objective.substeps=-1"),
        ({"hidden_weight": 0.0}, "are all 0"),
        ({"output_weight": -1.0}, "objective.output_weight=-1.0"),
        ({"output": "epsilon"}, "objective.output='epsilon'.*Allowed: eps, flow, v, x0"),
        ({"output_norm": "l3"}, "objective.output_norm='l3'.*Allowed: l1, l2"),
    ],
)
def test_impossible_settings_say_what_is_allowed(hyper, text):
    with pytest.raises(ConfigError, match=text):
        prepared(tiny.tables(steps=32, levels=4), **hyper)


def test_unknown_hyperparameters_and_names_have_a_nearest_match():
    with pytest.raises(ConfigError, match="objective.sub_steps.*Did you mean 'substeps'"):
        make_objective({"name": "sfddm", "sub_steps": 3})
    with pytest.raises(ConfigError, match="objective.name='sfdm'.*Did you mean 'sfddm'"):
        make_objective({"name": "sfdm"})
    with pytest.raises(ConfigError, match=r"objective.name is missing"):
        make_objective({"substeps": 3})
