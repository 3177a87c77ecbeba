"""Two-time networks: derivatives along the path, MeanFlow's identity, shortcut's fixed point."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flow_maps import EXACT, MEAN, STD, ExactMap, moved, spread

from ddistill.denoiser import Denoiser
from ddistill.diffusion import ddim_step, expand, flow_time, from_x0
from ddistill.errors import ConfigError
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.denoising import Denoising
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.objectives.path_slopes import path_slope, velocity, with_derivative
from ddistill.objectives.sampling import normal
from ddistill.objectives.states import noised
from ddistill.schedules import Level, cosine, karras, linear_path, uniform_grid


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def tables_of(schedule):
    return make_level_tables(schedule, np.arange(schedule.num_steps + 1))


def path_tables(levels=10, dtype=np.float64):
    return tables_of(linear_path(levels, dtype=dtype))


def compiled(objective, networks):
    """The loss as a program: operation by operation it takes many times as long."""
    return jax.jit(lambda batch, tables: objective.loss(networks, batch, tables))


def loss_of(objective, networks, batch, tables):
    return compiled(objective, networks)(batch, tables)


slope_at = jax.jit(path_slope)


def of_velocity(prediction, z, level):
    return velocity(prediction)


def gaussian_batch(count):
    batch = tiny.batch(count)
    image = MEAN + STD * normal(batch.key("image"), batch.image).astype(jnp.float64)
    return batch.replace(image=image)


# ---------------------------------------------------------------------------------- derivatives


def test_slopes_of_the_straight_path_are_exact(float64):
    slope = slope_at(path_tables(), jnp.arange(1, 11))
    for found, wanted in zip((slope.alpha, slope.sigma, slope.time), (-1.0, 1.0, 1000.0)):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_slopes_of_other_schedules_have_an_error_of_second_order(float64):
    """By t: sigma = t / (1 - t) in EDM, whose time is log(sigma) / 4; an angle on a circle."""
    errors = {"edm": [], "circle": []}
    for count in (128, 256):
        levels = karras(count, dtype=np.float64)
        sigma = levels.sigma[2:]
        slope = slope_at(tables_of(levels), jnp.arange(2, count + 1))
        np.testing.assert_allclose(slope.alpha / (1 + sigma), 0.0, atol=5e-3)
        by_sigma = slope.sigma / (1 + sigma) ** 2 - 1.0
        by_time = slope.time * 4 * sigma / (1 + sigma) ** 2 - 1.0
        errors["edm"].append(max(np.abs(by_sigma).max(), np.abs(by_time).max()))
        levels = cosine(count, dtype=np.float64)
        slope = slope_at(tables_of(levels), jnp.arange(1, count))
        alpha, sigma = levels.alpha[1:-1], levels.sigma[1:-1]
        growth = (alpha + sigma) ** 2  # d(angle)/dt
        off = np.abs(slope.alpha + sigma * growth), np.abs(slope.sigma - alpha * growth)
        errors["circle"].append(np.max(off))
    for first, second in errors.values():
        assert second < 0.35 * first
        assert second < 4e-3


def test_slopes_have_their_digits_in_float32_where_there_is_most_noise():
    """Of 4000 levels up to sigma = 800, neighbours differ by 1e-6 in t: a hundredth was lost."""
    levels = karras(4000, sigma_max=800.0)
    rows = jnp.arange(400, 4001)
    slope = slope_at(tables_of(levels), rows)
    sigma = np.asarray(levels.sigma, np.float64)[400:]
    factor = sigma / (1 + sigma) ** 2  # of the derivative in log(sigma)
    np.testing.assert_allclose(slope.time * factor, 0.25, rtol=1e-3)
    np.testing.assert_allclose(slope.sigma * factor / sigma, 1.0, rtol=1e-3)
    np.testing.assert_allclose(slope.alpha * factor, 0.0, atol=1e-3)


def test_the_derivative_of_a_network_is_that_of_central_differences(float64):
    module = tiny.TinyNet()
    inputs = jnp.zeros((1, *tiny.IMAGE)), jnp.zeros(1), None
    params = module.init(jax.random.key(0), *inputs)["params"]
    student = Denoiser.from_module(module, jax.tree.map(jnp.float64, params), "v")
    path = linear_path(10, dtype=np.float64)
    tables = tables_of(path.replace(time=path.time / 250.0))
    state = noised(gaussian_batch(9), tables, jnp.arange(1, 10), None)
    state = dataclasses.replace(state, dropout_key=None)
    direction = EXACT(state.z, state.level)
    slope = path_slope(tables, state.index)
    value, found = jax.jit(
        lambda state: with_derivative(student, of_velocity, state, direction, slope)
    )(state)
    np.testing.assert_allclose(value, velocity(student(state.z, state.level)), rtol=1e-12)
    h = 1e-5

    @jax.jit
    def at(h):
        t = flow_time(state.level) + h
        level = Level(1.0 - t, t, 4.0 * t)
        z = state.z + h * velocity(direction)
        return velocity(student(z, level))

    wanted = (at(h) - at(-h)) / (2 * h)
    np.testing.assert_allclose(found, wanted, atol=1e-8)


# -------------------------------------------------------------------------------------- MeanFlow

TEACHER = {"velocity_from": "teacher"}


def meanflow(**hyper):
    return make_objective({"name": "meanflow", **hyper})


def between(start, end, **hyper):
    """MeanFlow of all examples between two rows."""

    class Fixed(type(meanflow())):
        def interval(self, batch, tables, instant):
            rows = jnp.broadcast_to(jnp.asarray(start), instant.shape)
            return rows, jnp.where(instant, rows, jnp.asarray(end))

    return Fixed(**{"instant_share": 0.0, "adaptive_power": 0.0, **hyper})


def test_the_exact_map_fulfils_the_identity(float64):
    """u + (t - r) du/dt = v for (t, r) of tenths: the loss against the teacher's velocity is 0."""
    objective = between([9, 10, 5, 3], [1, 0, 4, 3], **TEACHER)
    networks = {"student": ExactMap(), "teacher": EXACT_TEACHER}
    values, metrics = loss_of(objective, networks, gaussian_batch(4), path_tables())
    assert float(jnp.sqrt(jnp.max(values))) < 1e-10
    assert 0.01 < float(metrics["tangent_rms"]) < 3.0


class _Teacher:
    extras = ()

    def __call__(self, z, level, cond=None, *, key=None):
        return EXACT(z, level)


EXACT_TEACHER = _Teacher()


def test_a_teacher_takes_the_variance_out_of_the_target(float64):
    """At (0.8, 0.2) the target from data has a standard deviation of 0.63; 0 in the test above."""
    networks = {"student": ExactMap()}
    metrics = loss_of(between(8, 2), networks, gaussian_batch(20_000), path_tables())[1]
    np.testing.assert_allclose(jnp.sqrt(metrics["velocity_distance"]), 0.63, atol=0.01)


def test_a_wrong_map_has_the_distance_of_the_formula(float64):
    """Against numpy and central differences, at t = 0.9 and r = 0.1."""
    networks = {"student": ExactMap(off=0.3), "teacher": EXACT_TEACHER}
    batch, tables = gaussian_batch(8), path_tables()
    loss = compiled(between(9, 1, tangent_warmup=100, **TEACHER), networks)
    values, metrics = loss(batch, dataclasses.replace(tables, step=jnp.asarray(100)))
    state = noised(batch, tables, jnp.full(8, 9), None)
    z, v, h = state.z, velocity(EXACT(state.z, state.level)), 1e-5

    @jax.jit
    def u(z, t):
        exact = (z - moved(z, t, 0.1)) / (t - 0.1)
        return exact + 0.3 * jnp.sin(z) * (1 + t * 0.1)

    tangent = 0.8 * (u(z + h * v, 0.9 + h) - u(z - h * v, 0.9 - h)) / (2 * h)
    wanted = jnp.sum((u(z, 0.9) - v + tangent) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(values, wanted, rtol=1e-6)
    rms = np.sqrt(np.mean(np.square(tangent)))
    np.testing.assert_allclose(metrics["tangent_rms"], rms, rtol=1e-6)
    values = loss(batch, dataclasses.replace(tables, step=jnp.asarray(50)))[0]
    wanted = jnp.sum((u(z, 0.9) - v + 0.5 * tangent) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(values, wanted, rtol=1e-6)


TOLD = tiny.TinyNet(extras=("end_time",))


def told_student(seed=1, kind="flow"):
    """A small student on which the end of a step has an effect."""
    params = tiny.tiny_params(seed, TOLD)
    kernel = 1e-3 * jax.random.normal(jax.random.key(seed + 5), (1, 6))
    params["extra_end_time"] = {"kernel": kernel, "bias": jnp.zeros(6)}
    return Denoiser.from_module(TOLD, params, kind)


def test_where_r_is_t_it_is_flow_matching():
    """Of the same noisy images, without the time of the end in the network."""
    batch, tables = tiny.batch(16), path_tables(16, np.float32)
    student = tiny.tiny_denoiser(1, "flow", TOLD)
    objective = meanflow(
        time_law="uniform", end_rule="below", instant_share=1 - 1e-9, adaptive_power=0
    )
    values, metrics = loss_of(objective, {"student": student}, batch, tables)
    plain = student.given(end_time=0.0)
    matching = Denoising(error="flow").regression_loss
    wanted = jax.jit(lambda b, t: matching({"student": plain}, b, t)[0])(batch, tables)
    np.testing.assert_allclose(values / np.prod(tiny.IMAGE), wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["instant_distance"], metrics["velocity_distance"])


def test_the_weight_bounds_the_gradient():
    """At p = 1 its norm is 2 d / (d^2 + c) <= 1 / sqrt(c), largest at d = sqrt(c)."""
    objective = meanflow(adaptive_floor=0.04)
    d = jnp.asarray([0.01, 0.2, 3.0])
    gradient = jax.grad(lambda d: jnp.sum(d**2 * objective.adaptive_weight(d**2)))(d)
    np.testing.assert_allclose(gradient, 2 * d / (d**2 + 0.04), rtol=1e-5)
    np.testing.assert_allclose(gradient[1], 1 / np.sqrt(0.04), rtol=1e-5)
    assert jnp.argmax(gradient) == 1


def test_no_gradient_goes_through_the_derivative():
    """The gradient is 2 w (u - target) du/dtheta, the target a constant."""
    batch, tables = tiny.batch(8), path_tables(16, np.float32)
    objective, student = meanflow(instant_share=0.5), told_student()

    def loss(params):
        values, _ = objective.loss({"student": student.replace(params=params)}, batch, tables)
        return jnp.mean(values)

    found = jax.jit(jax.grad(loss))(student.params)

    def by_hand(params):
        instant = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5))(batch.key("instant"))
        index, end = objective.interval(batch, tables, instant)
        state = noised(batch, tables, index, None)
        span = expand(flow_time(state.level) - flow_time(tables.student.at(end)), state.z)
        own = student.replace(params=params).given(end_time=tables.student.time[end])
        u, du = with_derivative(own, of_velocity, state, state.data, path_slope(tables, index))
        apart = u - jax.lax.stop_gradient(velocity(state.data) - span * du)
        total = jnp.sum(jnp.square(apart), axis=(1, 2, 3))
        return jnp.mean(total / jax.lax.stop_gradient(total + 1e-2))

    wanted = jax.jit(jax.grad(by_hand))(student.params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_draws_of_t_and_r():
    """Sorted draws of one law; a second law below t; the share with r = t; the clean end."""
    batch, tables = tiny.batch(4000), path_tables(64, np.float32)

    def rows(objective, instant):
        return jax.jit(lambda b, i: objective.interval(b, tables, i))(batch, instant)

    index, end = rows(meanflow(), jnp.zeros(4000, bool))
    logits = lambda x: np.log((x / 64) / (1 - np.minimum(x, 63.9) / 64))  # noqa: E731
    mean = (logits(index).mean() + logits(end + 1).mean()) / 2
    np.testing.assert_allclose(mean, -0.4, atol=0.07)
    # The means of the larger and of the smaller of two normal draws are apart by 2 / sqrt(pi).
    np.testing.assert_allclose(logits(index).mean() - logits(end + 1).mean(), 1.13, atol=0.07)
    below = meanflow(end_rule="below", time_mean=-0.6, time_std=1.6, end_mean=-4.0, end_std=1.6)
    index, end = rows(below, jnp.zeros(4000, bool))
    np.testing.assert_allclose(np.median(logits(index)), -0.6, atol=0.15)
    assert np.all(end < index)
    assert np.mean(end == 0) > 0.3
    instant = jnp.arange(4000) % 4 > 0
    index, end = rows(below, instant)
    np.testing.assert_array_equal(np.asarray(index == end), np.asarray(instant))


def test_dropped_labels_are_among_the_examples_with_r_t():
    batch = tiny.batch(4000)

    def shares(instant_share, label_dropout):
        objective = meanflow(instant_share=instant_share, label_dropout=label_dropout, null_class=3)
        dropped, instant = map(np.asarray, objective.dropped_and_instant(batch))
        assert np.all(instant[dropped])
        return dropped.mean(), instant.mean()

    np.testing.assert_allclose(shares(0.75, 0.1), (0.1, 0.75), atol=0.03)
    np.testing.assert_allclose(shares(0.2, 0.4), (0.4, 0.4), atol=0.03)
    np.testing.assert_allclose(shares(0.3, 0.0), (0.0, 0.3), atol=0.03)


def test_guidance_mixes_the_data_and_the_students_own_velocities():
    """Of a student that says c at class c: w v + (1 - w - k) n + k c, or v where it is dropped."""

    class Classy:
        extras = ("end_time",)

        def given(self, end_time):
            return self

        def __call__(self, z, level, cond=None, *, key=None):
            u = jnp.broadcast_to(expand(cond.astype(z.dtype), z), z.shape)
            return from_x0(z - expand(level.sigma, z) * u, z, level)

    batch, tables = tiny.batch(64, conditional=True), path_tables(16, np.float32)
    objective = meanflow(
        data_guidance=0.5, own_guidance=0.3, label_dropout=0.4, null_class=3, time_mean=0.0
    )
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, 0.4))(batch.key("label_dropout"))
    cond = objective.condition(batch, dropped)
    np.testing.assert_array_equal(cond, jnp.where(dropped, 3, batch.cond))
    state = noised(batch, tables, jnp.full(64, 8), cond)
    plain = velocity(state.data)
    found = velocity(objective.guided(Classy(), state, batch, dropped))
    label = expand(batch.cond.astype(jnp.float32), plain)
    wanted = jnp.where(expand(dropped, plain), plain, 0.5 * plain + 0.2 * 3 + 0.3 * label)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert objective.null_class_share == 0.4


# -------------------------------------------------------------------------------------- shortcut


def shortcut(**hyper):
    return make_objective({"name": "shortcut", **hyper})


def test_the_exact_map_is_a_fixed_point_of_half_steps(float64):
    networks = {"student": ExactMap(), "target": ExactMap(), "teacher": EXACT_TEACHER}
    objective = shortcut(**TEACHER)
    # On another schedule, a circle with a time of its own, the map is the same.
    straight = linear_path(16, dtype=np.float64)
    length = np.hypot(straight.alpha, straight.sigma)
    circle = straight.replace(alpha=straight.alpha / length, sigma=straight.sigma / length)
    loss = compiled(objective, networks)
    for tables in (path_tables(16), tables_of(circle)):
        metrics = loss(gaussian_batch(64), tables)[1]
        assert metrics["doubled_distance"] < 1e-20
        # The map over one level is the velocity itself up to the length of the level.
        assert 1e-4 < metrics["velocity_distance"] < 0.1


def test_half_steps_are_averaged_where_they_end(float64):
    """Of a wrong map: the mean of u at t and of u where that leads; bounded if it is large."""
    tables, off = path_tables(16), ExactMap(off=0.4)
    batch = gaussian_batch(3)
    index, length = jnp.asarray([16, 12, 4]), jnp.asarray([8, 4, 4])
    z = noised(batch, tables, index, None).z
    few = (z, index, length, None)
    found = jax.jit(lambda few: shortcut().half_steps(off, few, tables))(few)

    @jax.jit
    def by_hand(z, t, d):
        def at(z, t, r):
            return velocity(off.given(1000.0 * r)(z, Level(1.0 - t, t, 1000.0 * t)))

        first = at(z, t, t - d)
        second = at(z - expand(d, z) * first, t - d, t - 2 * d)
        return (first + second) / 2

    np.testing.assert_allclose(found, by_hand(z, index / 16, length / 32), rtol=1e-9)
    bounded = shortcut(velocity_bound=0.1)
    assert float(jnp.max(jnp.abs(bounded.half_steps(off, few, tables)))) == pytest.approx(0.1)
    between_ = bounded._bounded(5.0 * z, tables.student.at(index))
    np.testing.assert_allclose(jnp.max(jnp.abs(between_)), 0.1)
    assert shortcut(velocity_bound=0.0)._bounded(5.0 * z, tables.student.at(index)) is not None


def test_steps_begin_at_multiples_of_their_length():
    batch, tables = tiny.batch(4000), path_tables(16, np.float32)
    index, length = (np.asarray(x) for x in jax.jit(shortcut().steps)(batch, tables))
    assert set(length) == {2, 4, 8, 16}
    assert not np.any(index % length)
    assert index.max() == 16
    assert np.all(index - length >= 0)
    np.testing.assert_allclose(np.mean(length == 2), 0.25, atol=0.03)
    for size in (2, 4, 8):
        counts = np.bincount(index[length == size] // size)[1:]
        assert len(counts) == 16 // size
        assert counts.min() > 0.7 * counts.mean()


def test_the_velocity_of_the_path_has_no_bound():
    """The mean of a bounded target would not be the mean of the target."""
    batch, tables = tiny.batch(16), path_tables(16, np.float32)
    networks = {"student": told_student(), "target": told_student(2)}
    plain, bounded = (
        loss_of(shortcut(velocity_bound=bound), networks, batch, tables)[0] for bound in (0, 0.2)
    )
    np.testing.assert_array_equal(np.delete(plain, [0, 8]), np.delete(bounded, [0, 8]))
    assert not np.any(np.isclose(plain[::8], bounded[::8]))


def test_one_example_in_eight_has_a_doubled_step():
    """The others are flow matching at the shortest step; the average gets no gradient."""
    batch, tables, student = tiny.batch(16), path_tables(16, np.float32), told_student()
    networks = {"student": student, "target": told_student(2)}
    values, metrics = loss_of(shortcut(), networks, batch, tables)
    instant = shortcut(doubled_every=16)
    fewer, other = loss_of(instant, networks, batch, tables)
    np.testing.assert_allclose(np.delete(values, [0, 8]), np.delete(fewer, [0, 8]), rtol=1e-5)
    assert not np.allclose(values[8], fewer[8])
    np.testing.assert_allclose(metrics["doubled_distance"], (values[0] + values[8]) / 2, rtol=1e-5)
    np.testing.assert_allclose(other["doubled_distance"], fewer[0], rtol=1e-5)

    def total(params):
        own = {**networks, "target": networks["target"].replace(params=params)}
        return jnp.sum(loss_of(shortcut(), own, batch, tables)[0])

    gradient = jax.jit(jax.grad(total))(networks["target"].params)
    assert all(float(jnp.max(jnp.abs(x))) == 0.0 for x in jax.tree.leaves(gradient))


# -------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("count", [1, 3])
def test_the_exact_map_reaches_the_end_of_the_path_in_any_number_of_steps(count):
    """With DDIM's steps, which tell the network where they end; and so does its derivative in r."""
    with jax.enable_x64(True):
        levels = linear_path(16, dtype=np.float64)
        noise = jnp.asarray(np.random.default_rng(0).standard_normal((4, *tiny.IMAGE)))
        grid = uniform_grid(16, count)
        z = noise
        for here, there in zip(grid[::-1][:-1], grid[::-1][1:]):
            network = ExactMap().given(levels.at(int(there)).time)
            level = levels.at(int(here))
            z = ddim_step(network(z, level), z, level, levels.at(int(there)))
        wanted = MEAN + STD * (noise - 0.0) / spread(1.0)
        np.testing.assert_allclose(z, wanted, rtol=1e-10)


def test_the_map_obeys_the_velocity_where_a_step_ends(float64):
    """The Lagrangian form, d/dr of the end of a step = v there, to 1e-10."""
    z, t = gaussian_batch(4).image, jnp.asarray(0.8)

    @jax.jit
    def end(r):
        network = ExactMap().given(1000.0 * jnp.broadcast_to(r, (4,)))
        here, there = (Level(1.0 - s, s, 1000.0 * s) for s in (t, r))
        return ddim_step(network(z, here), z, here, there)

    for r in (0.1, 0.5):
        where, change = jax.jvp(end, (jnp.asarray(r),), (jnp.asarray(1.0),))
        level = Level(*(jnp.asarray(x) for x in (1.0 - r, r, 1000.0 * r)))
        np.testing.assert_allclose(change, velocity(EXACT(where, level)), atol=1e-10)


# ------------------------------------------------------------------------------- needs, refusals


@pytest.mark.parametrize("name", ["meanflow", "shortcut"])
def test_needs_and_costs(name):
    plain, distilled = (make_objective({"name": name, **h}) for h in ({}, TEACHER))
    assert plain.requires.teacher == ""
    assert "takes the velocity of the path" in distilled.requires.teacher
    assert (plain.teacher_calls(2), distilled.teacher_calls(), distilled.teacher_calls(2)) == (
        0,
        1,
        2,
    )
    for objective in (plain, distilled):
        assert objective.requires.all_levels
        assert objective.requires.images
        assert objective.sampler == "ddim"
        assert objective.any_steps
        assert list(objective.extra_inputs) == ["end_time"]


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"velocity_from": "techer"}, "velocity_from"),
        ({"instant_share": 1.0}, r"instant_share=1.0 must be in \[0, 1\)"),
        ({"time_std": 0.0}, "time_std=0.0 must be above 0"),
        ({"time_law": "uniform", "end_mean": -4.0}, "end_mean=-4.0 has no effect"),
        ({"adaptive_power": 0.0, "adaptive_floor": 1e-3}, "adaptive_floor=0.001 has no effect"),
        ({"own_guidance": 0.5, **TEACHER}, "but velocity_from='teacher'"),
        ({"tangent_warmup": -1}, "tangent_warmup=-1 must be a number >= 0"),
    ],
)
def test_settings_of_meanflow_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        meanflow(**hyper)


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"doubled_every": 1}, "doubled_every=1 must be 2 or more"),
        ({"target_ema": 1.0}, r"target_ema=1.0 must be in \[0, 1\)"),
        ({"velocity_bound": -1.0}, "velocity_bound=-1.0 must be a number >= 0"),
    ],
)
def test_settings_of_shortcut_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        shortcut(**hyper)


def stage(steps, kind="flow", classes=0, **sizes):
    networks = NetworkFacts(student_prediction=kind, num_classes=classes)
    return StageFacts(np.arange(steps + 1), networks, steps=10, **sizes)


@pytest.mark.parametrize(
    ("objective", "facts", "words"),
    [
        (meanflow(), stage(2), "a grid of 2 steps: the derivative in time is read off 3 levels"),
        (meanflow(), stage(8, "x0"), "prediction='x0'.*sigma.*Allowed: flow, v, edm"),
        (meanflow(), stage(8, "eps"), "prediction='eps'.*alpha.*Allowed: flow, v, edm"),
        (meanflow(label_dropout=0.1), stage(8, "v", 10), "null class of a network with 10"),
        (meanflow(own_guidance=0.5), stage(8, "v"), "guide to a condition, but the student has"),
        (
            meanflow(label_dropout=0.1),
            stage(8, "v"),
            "label_dropout=0.1 has no effect",
        ),
        (shortcut(), stage(12), "a grid of 12 steps.* such as 8"),
        (shortcut(), stage(8, "x0"), "prediction='x0'.*Allowed: flow, v, edm"),
        (shortcut(), stage(8, batch_size=12), "doubled_every=8, but 12 examples"),
    ],
)
def test_stages_that_cannot_work_are_refused(objective, facts, words):
    with pytest.raises(ConfigError, match=words):
        objective.prepare(facts)
    fine = stage(8, "edm", 10, batch_size=16, conditional=True)
    null = {"null_class": 10} if getattr(objective, "null_class", None) else {}
    dataclasses.replace(objective, **null).prepare(fine)


def test_a_growing_derivative_raises_an_alarm():
    alarms = meanflow().diagnostics.alarms
    assert alarms({"tangent_rms": 3.0}) == ()
    assert [(a.name, a.fatal) for a in alarms({"tangent_rms": 50.0})] == [("tangent", False)]
    assert alarms({"tangent_rms": 2e3})[0].fatal
