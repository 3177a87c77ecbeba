"""Catch-Up: its targets step by step, its reductions, one and two heads, wrong settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gaussian import GaussianDenoiser

from ddistill.diffusion import Prediction, convert, expand, from_x0
from ddistill.errors import ConfigError
from ddistill.networks.weights import Weights
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.base import bind, init_inputs
from ddistill.objectives.denoising import Denoising
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.objectives.path_slopes import velocity
from ddistill.objectives.sampling import draw_index, normal
from ddistill.objectives.states import noised
from ddistill.schedules import Schedule, linear_path

MEAN, STD = 0.3, 0.7
EXACT = GaussianDenoiser(MEAN, STD)
LEVELS = 16
PATH = linear_path(LEVELS)
both_orders = pytest.mark.parametrize("order", [1, 2])


def prepared(order=1, width=6, **hyper):
    objective = make_objective({"name": "catch_up", "runge_kutta": order, **hyper})
    facts = NetworkFacts(student_features={"last": (4, 4, width)}, student_prediction="flow")
    return objective.prepare(StageFacts(np.arange(LEVELS + 1), facts))


def path_tables(schedule=PATH):
    return make_level_tables(schedule, np.arange(LEVELS + 1))


def says(make):
    """A student of one answer in all of its roles: `make(z, level)` -> prediction."""

    class Student:
        def __call__(self, z, level, cond=None, *, key=None):
            return make(z, level)

        def with_features(self, taps):
            return lambda z, level, cond=None, *, key=None: (make(z, level), {"last": z})

    return Student()


def networks(student, head=None):
    return {"student": student, "head": head or (lambda features, like: jnp.zeros_like(like))}


# -------------------------------------------------------------------------------------- targets


def two_points(z, level):
    """The exact denoiser of data that are +1 or -1."""
    return from_x0(jnp.tanh(expand(level.alpha / level.sigma**2, z) * z), z, level)


def numpy_velocity(z, t):
    """Of `two_points` on the straight path."""
    x0 = np.tanh((1 - t) * z / t**2)
    return (z - (1 - t) * x0) / t - x0


@both_orders
def test_targets_are_the_papers_steps(order):
    batch, tables = tiny.batch(9), path_tables()
    index, rows = (
        jnp.asarray([16, 16, 9, 8, 7, 3, 2, 1, 4]),
        jnp.asarray([1, 4, 3, 4, 1, 1, 1, 1, 4]),
    )
    state = noised(batch, tables, index, None)
    answer = two_points(state.z, state.level)
    found = prepared(order).targets(says(two_points), answer, state, rows, tables)
    assert len(found) == order
    z, noise, image = (np.asarray(x, np.float64) for x in (state.z, state.data.eps, batch.image))
    for b in range(9):
        t, h = int(index[b]) / LEVELS, int(rows[b]) / LEVELS
        if t - order * h < 1e-9:  # no network answers at t = 0
            expected = [noise[b] - image[b]] * order
        else:
            slope = numpy_velocity(z[b], t)
            if order == 2:
                slope = (slope + numpy_velocity(z[b] - h * slope, t - h)) / 2
            expected = [numpy_velocity(z[b] - k * h * slope, t - k * h) for k in (1, 2)[:order]]
        for ours, wanted in zip(found, expected):
            np.testing.assert_allclose(ours[b], wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("order", "head", "power"), [(1, 0, 2), (2, 0, 3), (2, 1, 2)])
def test_the_step_of_either_head_has_its_order(order, head, power):
    """Against the velocity at the exact end of the step, for Gaussian data.

    The second head's step of twice the length goes on with the slope of the first one.
    """
    with jax.enable_x64(True):
        errors = []
        for count in (64, 128, 256):
            path = linear_path(count, dtype=np.float64)
            tables = make_level_tables(path, np.arange(count + 1))
            rows, index = jnp.full(6, 2), jnp.full(6, count * 3 // 4)
            state = noised(tiny.batch(6), tables, index, None)
            answer = EXACT(state.z, state.level)
            ours = prepared(order).targets(says(EXACT), answer, state, rows, tables)[head]
            there = path.at(count * 3 // 4 - 2 * (head + 1))
            spread = [np.hypot(level.alpha * STD, level.sigma) for level in (path.at(index), there)]
            offset = np.asarray(state.z) - path.alpha[count * 3 // 4] * MEAN
            exact = there.alpha * MEAN + spread[1] / spread[0][:, None, None, None] * offset
            errors.append(np.abs(ours - velocity(EXACT(exact, there))).max())
    slope = np.diff(np.log2(errors))
    np.testing.assert_allclose(slope, -power, atol=0.15)


@both_orders
def test_no_gradient_goes_through_the_targets(order):
    batch, tables = tiny.batch(4), path_tables()
    state = noised(batch, tables, jnp.asarray([16, 12, 9, 8]), None)
    student = tiny.tiny_denoiser(1, "flow")

    def total(params):
        own = student.replace(params=params)
        answer = own(state.z, state.level)
        found = prepared(order).targets(own, answer, state, jnp.full(4, 2), tables)
        return sum(jnp.sum(x) for x in found)

    gradient = jax.grad(total)(student.params)
    assert all(float(jnp.max(jnp.abs(x))) == 0.0 for x in jax.tree.leaves(gradient))


# ----------------------------------------------------------------------------------- reductions


@both_orders
def test_a_constant_velocity_that_couples_noise_and_data_loses_nothing(order):
    batch, tables = tiny.batch(32), path_tables()
    speed = 0.4
    batch = batch.replace(image=normal(batch.key("noise"), batch.image) - speed)
    student = says(lambda z, level: convert("flow", jnp.full_like(z, speed), z, level))
    head = lambda features, like: jnp.full_like(like, speed)  # noqa: E731
    values, metrics = prepared(order, largest_step=0.5).loss(networks(student, head), batch, tables)
    np.testing.assert_allclose(values, 0.0, atol=1e-9)
    prefixes = ("", "head_")[:order]
    assert set(metrics) == {p + x for p in prefixes for x in ("catch_up_distance", "data_distance")}


def test_without_its_own_term_it_is_flow_matching():
    batch, tables, student = tiny.batch(16), path_tables(), tiny.tiny_denoiser(1, "flow")
    ours = prepared(catch_up_weight=0.0).loss(networks(student), batch, tables)[0]
    theirs = Denoising(error="flow").regression_loss({"student": student}, batch, tables)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_two_terms_and_both_heads_are_added_with_their_weights():
    batch, tables, student = tiny.batch(16), path_tables(), tiny.tiny_denoiser(1, "flow")
    head = lambda features, like: 0.2 * like + jnp.mean(features)  # noqa: E731

    def loss(order, **weights):
        return prepared(order, **weights).loss(networks(student, head), batch, tables)[0]

    for order in (1, 2):
        data = loss(order, catch_up_weight=0.0)
        both = loss(order)
        mixed = loss(order, catch_up_weight=2.0, data_weight=0.5)
        np.testing.assert_allclose(mixed, 2.0 * (both - data) + 0.5 * data, rtol=1e-4, atol=1e-5)
    values, metrics = prepared(2).loss(networks(student, head), batch, tables)
    np.testing.assert_allclose(jnp.mean(values), sum(metrics.values()), rtol=1e-5)


def test_short_steps_leave_the_exact_velocity_where_it_is():
    """The distance to the own velocity a step further falls with the square of the step."""
    found = []
    for count in (32, 128):
        tables = make_level_tables(linear_path(count), np.arange(count + 1))
        objective = prepared(largest_step=1 / count)
        metrics = objective.loss(networks(says(EXACT)), tiny.batch(2000), tables)[1]
        clean = 1 / count  # the share of examples with the data as the target
        found.append(float(metrics["catch_up_distance"] - clean * metrics["data_distance"]))
    assert found[1] < found[0] / 8


@both_orders
def test_any_schedule_is_the_straight_path(order):
    """Levels of other lengths, and a network that is told t, lose the same."""
    length = np.hypot(PATH.alpha, PATH.sigma)
    preserving = Schedule(PATH.alpha / length, PATH.sigma / length, PATH.time)
    batch, student = tiny.batch(16), tiny.tiny_denoiser(1, "flow")
    head = lambda features, like: jnp.broadcast_to(jnp.mean(features), like.shape)  # noqa: E731
    own, other = (
        prepared(order).loss(networks(student, head), batch, path_tables(levels))[0]
        for levels in (PATH, preserving)
    )
    np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-5)


# ----------------------------------------------------------------------------------- two heads


def test_both_networks_learn_from_the_second_head():
    objective, batch, tables = prepared(2), tiny.batch(8), path_tables()
    assert [u.trained for u in objective.updates] == [("student", "head")]
    student, module = tiny.tiny_denoiser(1, "flow"), objective.auxiliaries["head"].module
    inputs = init_inputs(objective, "head", tiny.IMAGE, False)
    fresh = module.init(jax.random.key(0), *inputs)["params"]
    np.testing.assert_array_equal(module.apply({"params": fresh}, *inputs), 0.0)
    # As trained: not all zero.
    params = {
        "head": jax.tree.map(lambda x: x + 0.1, fresh),
        "student": student.params,
    }

    def head_terms(params):
        head = bind(objective, "head", module, Weights(params["head"]), "flow")
        own = student.replace(params=params["student"])
        metrics = objective.loss(networks(own, head), batch, tables)[1]
        return metrics["head_catch_up_distance"] + metrics["head_data_distance"]

    gradient = jax.grad(head_terms)(params)
    for name in ("head", "student"):
        assert any(float(jnp.max(jnp.abs(x))) > 1e-4 for x in jax.tree.leaves(gradient[name])), name
    # The student's own last layer has no part in the second head.
    final = gradient["student"]["final"]
    assert all(float(jnp.max(jnp.abs(x))) == 0.0 for x in jax.tree.leaves(final))


def test_rows_of_a_step_are_uniform_up_to_the_longest():
    """Read off the targets of a student that tells its level."""
    tables = path_tables()
    told = says(
        lambda z, level: Prediction(jnp.zeros_like(z), z * 0 + level.time[:, None, None, None])
    )
    batch = tiny.batch(4000)
    objective, seen = prepared(largest_step=0.25), []

    class Recorded(type(objective)):
        def targets(self, student, prediction, state, rows, tables):
            seen.append((state.index, rows))
            return super().targets(student, prediction, state, rows, tables)

    recorded = Recorded(largest_step=0.25)
    recorded.loss(networks(told), batch, tables)
    index, rows = (np.asarray(x) for x in seen[0])
    np.testing.assert_array_equal(index, draw_index(batch.key("level"), tables))
    share = np.bincount(rows, minlength=5)[1:] / len(rows)
    np.testing.assert_allclose(share, 0.25, atol=0.03)
    assert len(share) == 4


# ---------------------------------------------------------------------------------- needs, refusals


def test_needs_and_costs():
    for order in (1, 2):
        objective = prepared(order)
        assert (objective.teacher_calls(), objective.teacher_calls(2)) == (0, 0)
        needs = objective.requires
        assert (needs.teacher, needs.classifier, needs.pairs) == ("", "", "")
        assert needs.images
        assert needs.all_levels
        assert objective.taps.student == (("last",) if order == 2 else ())
        assert set(objective.auxiliaries) == ({"head"} if order == 2 else set())


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"runge_kutta": 3}, "runge_kutta=3 must be 1 or 2"),
        ({"largest_step": 0.0}, r"largest_step=0.0 is a share of the levels"),
        ({"largest_step": 1.5}, r"largest_step=1.5 is a share of the levels"),
        ({"data_weight": 0.0}, "a constant velocity fulfils the rest"),
        ({"catch_up_weight": -1.0}, "catch_up_weight=-1.0 must be a number >= 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        make_objective({"name": "catch_up", **hyper})


@both_orders
def test_grids_and_predictions_that_cannot_work_are_refused(order):
    objective = make_objective({"name": "catch_up", "runge_kutta": order})
    with pytest.raises(ConfigError, match=f"a grid of {order} steps: with objective.runge_kutta"):
        objective.prepare(StageFacts(np.arange(order + 1)))
    objective.prepare(StageFacts(np.arange(order + 2)))
    with pytest.raises(ConfigError, match=r"prediction='eps'.*Allowed: flow, v, x0, edm"):
        objective.prepare(StageFacts(np.arange(5), NetworkFacts(student_prediction="eps")))
