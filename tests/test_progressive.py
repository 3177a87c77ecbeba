"""Progressive distillation: its target and losses from the published formulas, and chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gaussian import GaussianDenoiser, ddim_map
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill.diffusion import Prediction, expand
from ddistill.errors import ConfigError
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.parts import StageFacts
from ddistill.objectives.progressive import LOSSES, Progressive
from ddistill.objectives.sampling import normal, uniform_index
from ddistill.schedules import Schedule, cosine, make_schedule

TABLES = {
    "clean": lambda: cosine(16),
    "cfd": lambda: cosine(16, clean=False),
    "google": lambda: make_schedule("cosine_log_snr", 16),
}


def halved(schedule: Schedule, levels: int):
    stride = schedule.num_steps // levels
    return make_level_tables(schedule, np.arange(0, schedule.num_steps + 1, stride))


def drawn(batch, tables):
    """(index, noise) that the objective draws for a batch."""
    return (
        np.asarray(uniform_index(batch.key("level"), 1, tables.count)),
        np.asarray(normal(batch.key("noise"), batch.image), np.float64),
    )


def published(batch, tables, schedule, teacher, student):
    """PD's x~ and all four losses in float64, from arXiv 2202.00512 algorithm 2, step by step."""
    index, eps = drawn(batch, tables)
    alpha = np.asarray(schedule.alpha, np.float64)
    sigma = np.asarray(schedule.sigma, np.float64)
    time = np.asarray(schedule.time)
    top, bottom = (np.asarray(tables.grid)[index - i] for i in (0, 1))
    mid = (top + bottom) // 2
    x = np.asarray(batch.image, np.float64)

    def at(table, rows):
        return table[rows][:, None, None, None]

    def call(network, z, rows):
        """The network's x0 in float64; only the network itself runs in float32."""
        kind = network.prediction
        out = network.apply_fn(
            network.params,
            jnp.asarray(z, jnp.float32),
            jnp.asarray(time[rows]),
            None,
            train=False,
            rngs=None,
            taps=(),
        )
        out, a, s = np.asarray(out, np.float64), at(alpha, rows), at(sigma, rows)
        return {"x0": out, "eps": (z - s * out) / a, "v": a * z - s * out}[kind]

    z = at(alpha, top) * x + at(sigma, top) * eps
    x1 = call(teacher, z, top)
    z_mid = at(alpha, mid) * x1 + at(sigma, mid) / at(sigma, top) * (z - at(alpha, top) * x1)
    x2 = call(teacher, z_mid, mid)
    z_end = at(alpha, bottom) * x2 + at(sigma, bottom) / at(sigma, mid) * (
        z_mid - at(alpha, mid) * x2
    )
    ratio = at(sigma, bottom) / at(sigma, top)
    target = (z_end - ratio * z) / (at(alpha, bottom) - ratio * at(alpha, top))
    predicted = call(student, z, top)
    dx = np.square(predicted - target).mean(axis=(1, 2, 3))
    snr = (alpha[top] / sigma[top]) ** 2
    return target, {
        "x0": dx,
        "eps": snr * dx,
        "v": (1 + snr) * dx,
        "truncated_snr": np.maximum(dx, snr * dx),
    }


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_target_and_losses_equal_the_published_formulas(table, prediction):
    schedule = TABLES[table]()
    tables, batch = halved(schedule, 8), tiny.batch(12)
    teacher, student = (tiny.tiny_denoiser(i, prediction) for i in (0, 1))
    wanted, losses = published(batch, tables, schedule, teacher, student)
    index, eps = drawn(batch, tables)
    levels = tables.student.at(jnp.asarray(index))
    z = expand(levels.alpha, batch.image) * batch.image + expand(levels.sigma, batch.image) * eps
    state = tiny.state(z, index, tables)
    target = Progressive().target({"teacher": teacher}, state, tables).x0
    # An eps-network's x0 is (z - sigma eps) / alpha: at the noisiest level of a cosine table the
    # float32 rounding of its output is multiplied by up to sigma / alpha.
    scale = np.abs(wanted).max(axis=(1, 2, 3))
    error = np.abs(np.asarray(target, np.float64) - wanted).max(axis=(1, 2, 3))
    level_scale = np.maximum(1.0, np.asarray(levels.sigma) / np.asarray(levels.alpha))
    limit = 1e-6 * (level_scale if prediction == "eps" else 1.0) * np.maximum(scale, 1.0)
    assert np.all(error <= 4 * limit)
    for loss in LOSSES:
        networks = {"student": student, "teacher": teacher}
        values, _ = Progressive(loss=loss).regression_loss(networks, batch, tables)
        np.testing.assert_allclose(values, losses[loss], rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("table", TABLES)
def test_constant_teacher_is_its_own_target(table):
    tables, batch = halved(TABLES[table](), 4), tiny.batch(8)

    def constant(z, level, cond=None, *, key=None):
        x0 = jnp.full_like(z, 0.3)
        return Prediction(x0, (z - expand(level.alpha, z) * x0) / expand(level.sigma, z))

    state = tiny.state(batch.image, [1, 2, 3, 4, 1, 2, 3, 4], tables)
    target = Progressive().target({"teacher": constant}, state, tables)
    np.testing.assert_allclose(target.x0, 0.3, rtol=1e-6)


def test_student_that_says_the_target_loses_nothing():
    tables, batch = halved(cosine(16), 8), tiny.batch(8)
    teacher, objective = tiny.tiny_denoiser(), Progressive()
    index, _ = drawn(batch, tables)

    def student(z, level, cond=None, *, key=None):
        return objective.target({"teacher": teacher}, tiny.state(z, index, tables), tables)

    values, _ = objective.regression_loss({"student": student, "teacher": teacher}, batch, tables)
    np.testing.assert_allclose(values, 0.0, atol=1e-9)


def test_perfect_teacher_of_one_image():
    """Data that are a single point: teacher and student say it everywhere, and nothing is lost."""
    tables = halved(cosine(16), 8)
    batch = tiny.batch(8)
    batch = batch.replace(image=jnp.full_like(batch.image, 0.25))
    exact = GaussianDenoiser(mean=0.25, std=0.0)
    values, _ = Progressive().regression_loss({"student": exact, "teacher": exact}, batch, tables)
    np.testing.assert_allclose(values, 0.0, atol=1e-9)


def test_steps_onto_a_clean_level_have_the_second_prediction_as_target():
    for table in ("clean", "google"):
        schedule = TABLES[table]()
        assert float(schedule.sigma[0]) == 0.0
        tables, batch = halved(schedule, 8), tiny.batch(6)
        teacher, seen = tiny.tiny_denoiser(), []

        def recorded(z, level, cond=None, *, key=None, teacher=teacher, seen=seen):
            seen.append(teacher(z, level, cond))
            return seen[-1]

        state = tiny.state(batch.image, np.ones(6, np.int32), tables)
        target = Progressive().target({"teacher": recorded}, state, tables)
        np.testing.assert_allclose(target.x0, seen[1].x0, atol=1e-7)


def test_log_snr_of_20_is_as_good_as_clean():
    schedule = make_schedule("cosine_log_snr", 16, clean=False)
    tables, batch = halved(schedule, 8), tiny.batch(6)
    clean = halved(make_schedule("cosine_log_snr", 16), 8)
    teacher, index = {"teacher": tiny.tiny_denoiser()}, np.ones(6, np.int32)
    a, b = (
        Progressive().target(teacher, tiny.state(batch.image, index, p), p) for p in (tables, clean)
    )
    assert 0 < float(jnp.abs(a.x0 - b.x0).max()) < 1e-3


@settings(max_examples=20, deadline=None)
@given(halvings=st.integers(1, 4), mean=st.floats(-0.5, 0.5), std=st.floats(0.2, 1.2))
def test_a_chain_of_exact_students_ends_where_the_first_teacher_ends(halvings, mean, std):
    """k halvings of a Gaussian teacher, each student exact: its one step is the 2^k-step walk."""
    schedule = cosine(16, dtype=np.float64)
    noise = np.random.default_rng(0).normal(size=(3, 2))
    a, s = np.asarray(schedule.alpha), np.asarray(schedule.sigma)
    # Every network is x0 = c_i z + d_i at row i of the table.
    c = a * std**2 / (a**2 * std**2 + s**2)
    d = mean * (1 - c * a)
    stride = 1
    for _ in range(halvings):
        new_c, new_d = c.copy(), d.copy()
        for t in range(2 * stride, 17, 2 * stride):
            m, e = t - stride, t - 2 * stride
            x1 = np.array([c[t], d[t]])  # coefficients of (z, 1)
            z_m = a[m] * x1 + s[m] / s[t] * (np.array([1.0, 0.0]) - a[t] * x1)
            x2 = c[m] * z_m + np.array([0.0, d[m]])
            rho_t, rho_m = a[t] / s[t], a[m] / s[m]
            w = (a[e] - s[e] * rho_m) / (a[e] - s[e] * rho_t)
            assert 0.0 <= w <= 1.0
            new_c[t], new_d[t] = w * x2 + (1 - w) * x1
        c, d, stride = new_c, new_d, 2 * stride
    z = noise.copy()
    for t in range(16, 0, -stride):
        x0 = c[t] * z + d[t]
        z = a[t - stride] * x0 + s[t - stride] / s[t] * (z - a[t] * x0)
    np.testing.assert_allclose(z, ddim_map(schedule, noise, mean, std), rtol=1e-9, atol=1e-12)


def test_gradient_reaches_the_student_and_never_the_teacher():
    tables, batch = halved(cosine(16), 8), tiny.batch(6)

    def value(student, teacher):
        networks = {
            "student": tiny.tiny_denoiser().replace(params=student),
            "teacher": tiny.tiny_denoiser().replace(params=teacher),
        }
        return Progressive().regression_loss(networks, batch, tables)[0].mean()

    to_student, to_teacher = jax.grad(value, argnums=(0, 1))(
        tiny.tiny_params(1), tiny.tiny_params()
    )
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(to_teacher))
    assert all(float(jnp.abs(g).max()) > 0.0 for g in jax.tree.leaves(to_student))


def test_teacher_calls_are_what_the_loss_makes():
    tables, batch, calls = halved(cosine(16), 8), tiny.batch(4), []
    teacher = tiny.tiny_denoiser()

    def counted(*args, **kwargs):
        calls.append(1)
        return teacher(*args, **kwargs)

    objective = Progressive()
    objective.regression_loss({"student": teacher, "teacher": counted}, batch, tables)
    assert len(calls) == objective.teacher_calls() == 2


def test_grid_without_a_middle_is_refused():
    with pytest.raises(ConfigError, match=r"levels 1 and 2 are teacher levels 2 and 5"):
        Progressive().prepare(StageFacts(np.array([0, 2, 5, 8])))


@pytest.mark.parametrize(
    ("hyper", "part"),
    [
        ({"loss": "snr"}, "objective.loss='snr'"),
        ({"pixel_weight": -1.0}, "pixel_weight=-1.0"),
        ({"pixel_weight": 0.0}, "pixel_weight, classifier_weight are all 0"),
    ],
)
def test_hyperparameters_are_checked(hyper, part):
    with pytest.raises(ConfigError, match=part):
        make_objective({"name": "progressive", **hyper})


def test_cfd_table_has_the_published_entries():
    """methods: 1025 entries, s = .008, beta at most .999 (arXiv 2211.12039, released code)."""
    table = cosine(1024, clean=False, dtype=np.float64)
    abar = np.square(np.asarray(table.alpha))
    assert len(abar) == 1025
    np.testing.assert_allclose(abar[0], 0.99995978, rtol=1e-8)
    np.testing.assert_allclose(abar[1023], 2.31e-6, rtol=2e-3)
    np.testing.assert_allclose(abar[1024], 2.3117e-9, rtol=1e-4)
    np.testing.assert_allclose(table.sigma[0], 0.00634, rtol=1e-3)
