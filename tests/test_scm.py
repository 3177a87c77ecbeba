"""sCM: the tangent's identity on any schedule, its reductions, its gradient, and what it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import struct
from flow_maps import EXACT, MEAN, STD

from ddistill.diffusion import add_noise, expand, from_x0, output_of
from ddistill.errors import ConfigError
from ddistill.networks.time_weight import TimeWeight
from ddistill.networks.weights import Weights
from ddistill.objectives import make_level_tables, make_objective
from ddistill.objectives.base import bind, init_inputs
from ddistill.objectives.matching.generator import generate, initial_input
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.objectives.path_slopes import path_slope, scaled, with_derivative
from ddistill.objectives.rcm import rolled_in
from ddistill.objectives.sampling import Law, draw_level, normal, uniform_index
from ddistill.objectives.states import noised
from ddistill.schedules import Level, cosine, karras, linear_path

SD = 0.5


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def scm(**hyper):
    """The objective without normalisation, warm-up and weight, if nothing else is said."""
    usual = {"tangent_norm": "none", "tangent_warmup": 0, "learned_weight": False}
    return make_objective({"name": "scm", **usual, **hyper})


def tables_of(schedule):
    return make_level_tables(schedule, np.arange(schedule.num_steps + 1))


def gaussian_batch(count):
    batch = tiny.batch(count)
    image = MEAN + STD * normal(batch.key("image"), batch.image).astype(jnp.float64)
    return batch.replace(image=image)


def exact_image(z, t):
    """The consistency function of the Gaussian at TrigFlow's t."""
    spread = jnp.sqrt((jnp.cos(t) * STD) ** 2 + (jnp.sin(t) * SD) ** 2)
    return MEAN + STD / spread * (z - jnp.cos(t) * MEAN)


@dataclasses.dataclass(frozen=True)
class Trig:
    """A student with F = the exact one, plus `off` times a function of z and t.

    It reads t off the level, and z in the level's own scale.
    """

    off: float = 0.0

    def image(self, z, t):
        """D in TrigFlow's coordinates."""
        wrong = self.off * jnp.sin(2.0 * z + t)
        return exact_image(z, t) - jnp.sin(t) * SD * wrong

    def __call__(self, z, level, cond=None, *, key=None):
        alpha, sigma = expand(level.alpha, z), expand(level.sigma, z)
        scale = SD / jnp.sqrt(sigma**2 + (alpha * SD) ** 2)
        t = jnp.arctan2(sigma, alpha * SD)
        return from_x0(self.image(scale * z, t), z, level)


NETWORKS = {"student": Trig(), "teacher": EXACT}


def tangent_of(objective, student, state, tables, direction, share=1.0):
    """g, as the loss computes it."""
    place = state.level.sigma / (state.level.alpha + state.level.sigma)
    slope = scaled(path_slope(tables, state.index), place * (1 - place))
    output, change = with_derivative(student, objective.trig_output, state, direction, slope)
    return output, objective.tangent(output, change, state, direction, share)


# ------------------------------------------------------------------------------------- the tangent


def test_the_tangent_is_that_of_the_image_along_the_path(float64):
    """g = cos(t) dD/dt for any F, to 1e-10 (levels that are exactly straight in their table)."""
    objective, tables = scm(), tables_of(linear_path(200, dtype=np.float64))
    index = jnp.asarray([3, 40, 90, 150, 199])
    state = noised(gaussian_batch(5), tables, index, None)
    direction = EXACT(state.z, state.level)
    student = Trig(off=0.3)
    found = jax.jit(lambda s: tangent_of(objective, student, s, tables, direction)[1])(state)
    t = expand(jnp.arctan2(state.level.sigma, state.level.alpha * SD), state.z)
    z = jnp.cos(t) * state.data.x0 + jnp.sin(t) * SD * state.data.eps
    moves = jnp.cos(t) * SD * direction.eps - jnp.sin(t) * direction.x0
    _, change = jax.jvp(student.image, (z, t), (moves, jnp.ones_like(t)))
    np.testing.assert_allclose(found, jnp.cos(t) * change, atol=1e-10)
    # The sizes differ: nothing of this is 0.
    assert float(jnp.min(jnp.sqrt(jnp.mean(found**2, axis=(1, 2, 3))))) > 1e-5


@pytest.mark.parametrize("make", [linear_path, karras])
def test_the_exact_image_has_no_tangent_on_any_schedule(make, float64):
    tables, batch = tables_of(make(64, dtype=np.float64)), gaussian_batch(64)
    loss = jax.jit(lambda batch: scm().consistency_loss(NETWORKS, batch, tables))
    values, metrics = loss(batch)
    assert float(jnp.max(values)) < 1e-20
    assert metrics["tangent_rms"] < 1e-10


def test_networks_of_all_kinds_are_read_in_trigflow():
    """F of EDM's output is its negative; z in another scale has the same F."""
    z = tiny.batch(3).image
    for kind in ("edm", "flow"):
        levels = [
            Level(*(jnp.full(3, x) for x in level)) for level in ((0.6, 0.9, 2), (1.2, 1.8, 2))
        ]
        student = tiny.tiny_denoiser(1, kind)
        answers = [student(z, level) for level in levels[:1]]
        own = scm().trig_output(answers[0], z, levels[0])
        if kind == "edm":
            np.testing.assert_allclose(own, -student.raw(z, levels[0]), rtol=1e-4, atol=1e-5)
        t = jnp.arctan2(levels[0].sigma, levels[0].alpha * SD)[0]
        root = jnp.sqrt(0.9**2 + (0.6 * SD) ** 2)
        image = jnp.cos(t) * z * SD / root - jnp.sin(t) * SD * own
        np.testing.assert_allclose(image, answers[0].x0, rtol=1e-4, atol=1e-5)
        scaled_answer = from_x0(answers[0].x0, 2.0 * z, levels[1])
        np.testing.assert_allclose(
            scm().trig_output(scaled_answer, 2.0 * z, levels[1]), own, rtol=1e-4, atol=1e-5
        )


def test_at_the_start_of_the_warm_up_it_is_velocity_matching(float64):
    """At r = 0 the tangent is -cos(t)^2 (sd F - dz/dt), 0 where F is that of the path."""
    objective, tables = scm(), tables_of(linear_path(50, dtype=np.float64))
    state = noised(gaussian_batch(4), tables, jnp.asarray([5, 20, 35, 49]), None)
    direction = EXACT(state.z, state.level)
    output, found = jax.jit(
        lambda s: tangent_of(objective, Trig(off=0.3), s, tables, direction, share=0.0)
    )(state)
    t = expand(jnp.arctan2(state.level.sigma, state.level.alpha * SD), state.z)
    path = -output_of("edm", direction, state.z, state.level, SD)
    np.testing.assert_allclose(found, -(jnp.cos(t) ** 2) * SD * (output - path), rtol=1e-9)
    warm = scm(tangent_warmup=100)
    shares = [
        warm.warmed_up(dataclasses.replace(tables, step=jnp.asarray(s))) for s in (0, 25, 300)
    ]
    np.testing.assert_allclose(shares, [0.0, 0.25, 1.0])


def test_data_are_the_path_without_a_teacher(float64):
    """sCT: dz/dt = cos(t) n - sin(t) x of the example; its mean tangent is the teacher's."""
    tables, batch = tables_of(linear_path(50, dtype=np.float64)), gaussian_batch(10_000)
    index = jnp.full(10_000, 30)
    state = noised(batch, tables, index, None)
    of = jax.jit(lambda s, path: tangent_of(scm(), Trig(off=0.3), s, tables, path)[1])
    own, exact = (of(state, direction) for direction in (state.data, EXACT(state.z, state.level)))
    apart = own - exact
    # Right in the mean at every z: the error does not correlate with z.
    z = (state.z - jnp.mean(state.z)) / jnp.std(state.z)
    assert abs(float(jnp.mean(apart))) < 0.01
    assert abs(float(jnp.mean(apart * z))) < 0.01
    assert float(jnp.std(apart)) > 0.1


# --------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("norm", ["none", "rms", "l2"])
def test_the_gradient_is_the_normalised_tangent(norm):
    """-2 g w / numel at the output, with the learnt weight w = exp(-log variance)."""
    floor = {} if norm == "none" else {"tangent_floor": 0.2}
    objective = scm(tangent_norm=norm, learned_weight=True, **floor)
    tables, batch = tables_of(cosine(64)), tiny.batch(6)
    log_variance = 0.7

    def loss(shift):
        class Shifted(Trig):
            def __call__(self, z, level, cond=None, *, key=None):
                plain = super().__call__(z, level, cond)
                output = output_of("edm", plain, z, level, SD) - shift  # F + shift
                alpha, sigma = expand(level.alpha, z), expand(level.sigma, z)
                square = sigma**2 + (alpha * SD) ** 2
                x0 = (alpha * SD**2 / square) * z + sigma * SD / jnp.sqrt(square) * output
                return from_x0(x0, z, level)

        networks = {"student": Shifted(0.3), "teacher": EXACT}
        networks["time_weight"] = lambda level: jnp.full_like(level, log_variance)
        values, metrics = objective.consistency_loss(networks, batch, tables)
        return jnp.sum(values), (values, metrics)

    zero = jnp.zeros_like(batch.image)
    gradient, (values, metrics) = jax.jit(jax.grad(loss, has_aux=True))(zero)
    size = gradient[0].size
    weight = np.exp(-log_variance)
    law = Law("lognormal", objective.log_mean, objective.log_std)
    state = noised(batch, tables, draw_level(batch.key("level"), tables, law), batch.cond)
    tangent = tangent_of(objective, Trig(0.3), state, tables, EXACT(state.z, state.level))[1]
    reduce = {"rms": np.mean, "l2": np.sum}
    normal_ = np.asarray(tangent)
    if norm in reduce:
        length = np.sqrt(reduce[norm](normal_**2, axis=(1, 2, 3), keepdims=True))
        normal_ = normal_ / (length + 0.2)
    expected = -2 * weight * normal_ / size
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    squared = np.mean(np.square(normal_), axis=(1, 2, 3))
    np.testing.assert_allclose(values, weight * squared + log_variance, rtol=1e-4)
    np.testing.assert_allclose(metrics["consistency_distance"], squared.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["log_weight"], -log_variance, rtol=1e-6)
    rms = np.sqrt(np.mean(np.square(tangent)))
    np.testing.assert_allclose(metrics["tangent_rms"], rms, rtol=1e-4)


def test_the_learnt_weight_begins_at_one_and_follows_the_loss():
    """Its optimum at every level is the logarithm of the loss there."""
    objective = scm(learned_weight=True)
    assert [u.trained for u in objective.updates] == [("student", "time_weight")]
    module = objective.auxiliaries["time_weight"].module
    inputs = init_inputs(objective, "time_weight", tiny.IMAGE, False)
    params = module.init(jax.random.key(0), *inputs)["params"]
    own = bind(objective, "time_weight", module, Weights(params), "v")
    np.testing.assert_array_equal(own(jnp.linspace(-5.0, 5.0, 7)), 0.0)
    assert isinstance(module, TimeWeight)
    state = noised(tiny.batch(7), tables_of(linear_path(7)), jnp.arange(1, 8), None)
    squared = jnp.asarray(np.linspace(0.1, 2.0, 7), jnp.float32)

    def total(params):
        networks = {"time_weight": lambda x: module.apply({"params": params}, x)}
        return jnp.sum(objective.weighted(networks, squared, state, {}))

    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(_, carry):
        params, opt = carry
        updates, opt = optimizer.update(jax.grad(total)(params), opt)
        return optax.apply_updates(params, updates), opt

    params, _ = jax.lax.fori_loop(0, 600, step, (params, optimizer.init(params)))
    signal = jnp.maximum(state.level.alpha / state.level.sigma, 1e-4)
    found = module.apply({"params": params}, -jnp.log(signal))
    np.testing.assert_allclose(found, np.log(squared), atol=0.05)
    plain = scm(inverse_sigma=True).weighted({}, squared, state, {})
    np.testing.assert_allclose(plain[:-1], (squared * state.level.alpha / state.level.sigma)[:-1])


@struct.dataclass
class Polynomials:
    """An affine student: F = p(t) + q(t) z, polynomials of the angle."""

    p: jax.Array
    q: jax.Array

    def __call__(self, z, level, cond=None, *, key=None):
        root = jnp.sqrt(level.sigma**2 + (level.alpha * SD) ** 2)
        t = jnp.arctan2(level.sigma, level.alpha * SD)
        powers = t[:, None] ** jnp.arange(len(self.p))
        p, q = (expand(jnp.sum(powers * x, axis=1), z) for x in (self.p, self.q))
        own = expand(SD / root, z) * z
        image = expand(jnp.cos(t), z) * own - expand(jnp.sin(t), z) * SD * (p + q * own)
        return from_x0(image, z, level)


def test_an_affine_student_reaches_the_consistency_function():
    """Slope STD / S_t of the image at every t, from a student that knows nothing."""
    objective = scm(tangent_norm="rms", tangent_warmup=300, log_mean=-0.3, log_std=1.5)
    tables = tables_of(karras(256))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, 800))
    student = Polynomials(jnp.zeros(7), jnp.zeros(7))
    batch = tiny.batch(64)

    @jax.jit
    def run(student):
        def step(i, carry):
            student, opt = carry
            keys = jax.vmap(lambda key: jax.random.fold_in(key, i))(batch.keys)
            fresh = batch.replace(keys=keys)
            image = MEAN + STD * normal(fresh.key("image"), batch.image)
            here = dataclasses.replace(tables, step=i)

            def loss(student):
                networks = {"student": student, "teacher": EXACT}
                own = fresh.replace(image=image)
                return jnp.mean(objective.consistency_loss(networks, own, here)[0])

            updates, opt = optimizer.update(jax.grad(loss)(student), opt)
            return optax.apply_updates(student, updates), opt

        return jax.lax.fori_loop(0, 800, step, (student, optimizer.init(student)))[0]

    student = run(student)
    for t in (0.3, 0.8, 1.2, 1.5):
        level = Level(*(jnp.full(2, x) for x in (np.cos(t), SD * np.sin(t), t)))
        z = jnp.stack([jnp.zeros(tiny.IMAGE), jnp.ones(tiny.IMAGE)])
        image = student(z, level).x0
        slope = STD / np.sqrt((np.cos(t) * STD) ** 2 + (np.sin(t) * SD) ** 2)
        np.testing.assert_allclose(image[1] - image[0], slope, atol=0.03)
        np.testing.assert_allclose(image[0], exact_image(0.0, t), atol=0.03)


# -------------------------------------------------------------------------------- needs, refusals


def test_needs_and_costs():
    distilled, plain = scm(), scm(velocity_from="data")
    assert "takes the path" in distilled.requires.teacher
    assert plain.requires.teacher == ""
    assert (plain.teacher_calls(2), distilled.teacher_calls(), distilled.teacher_calls(2)) == (
        0,
        1,
        2,
    )
    for objective in (plain, distilled):
        assert objective.requires.all_levels
        assert objective.sampler == "renoise"
        assert objective.any_steps
        assert objective.extra_inputs == {}
        assert objective.auxiliaries == {}
    assert scm().diagnostics.alarms({"tangent_rms": 2e3})[0].fatal


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"velocity_from": "model"}, "velocity_from"),
        ({"tangent_norm": "l1"}, "tangent_norm"),
        ({"sigma_data": 0.0}, "sigma_data=0.0 must be above 0"),
        ({"log_std": -1.0}, "log_std=-1.0 must be above 0"),
        ({"tangent_warmup": -1}, "tangent_warmup=-1 must be a number >= 0"),
        ({"tangent_norm": "none", "tangent_floor": 0.2}, "tangent_floor=0.2 has no effect"),
    ],
)
def test_settings_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        scm(**hyper)


@pytest.mark.parametrize(("steps", "kind", "words"), [(2, "v", "a grid of 2"), (9, "x0", "'x0'")])
def test_stages_that_cannot_work_are_refused(steps, kind, words):
    facts = StageFacts(np.arange(steps + 1), NetworkFacts(student_prediction=kind))
    with pytest.raises(ConfigError, match=words):
        scm().prepare(facts)
    scm().prepare(StageFacts(np.arange(10), NetworkFacts(student_prediction="edm")))


# -------------------------------------------------------------------------------------------- rCM


def rcm(**hyper):
    usual = {"tangent_warmup": 0, "student_every": 2}
    objective = make_objective({"name": "rcm", **usual, **hyper})
    return objective.prepare(StageFacts(np.arange(17), NetworkFacts(prediction="v"), 10, 8))


def test_its_distance_to_the_path_has_another_factor_until_the_warm_up_is_over():
    """cos(t) sqrt(1 - r^2 sin(t)^2), by hand; sCM's is cos(t)^2 for every r."""
    assert float(rcm().first_factor(jnp.float32(0.0), jnp.float32(1 + 1e-6), 1.0)) == 0.0
    t = np.linspace(0.1, np.pi / 2, 7)
    for share in (0.0, 0.3, 1.0):
        expected = np.cos(t) * np.sqrt(1 - share**2 * np.sin(t) ** 2)
        found = rcm().first_factor(jnp.cos(t), jnp.sin(t), share)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        plain = scm().first_factor(jnp.cos(t), jnp.sin(t), share)
        np.testing.assert_allclose(plain, np.cos(t) ** 2, rtol=1e-5, atol=1e-6)
    after = rcm().first_factor(jnp.cos(t), jnp.sin(t), 1.0)
    np.testing.assert_allclose(after, plain, rtol=1e-4, atol=1e-5)


def test_rollouts_begin_at_noise_and_go_down():
    tables, batch, seen = tables_of(linear_path(16)), tiny.batch(2000), []

    def student(z, level, cond=None, *, key=None):
        seen.append(level.sigma)
        return from_x0(0.0 * z, z, level)

    noise = normal(batch.key("noise"), batch.image)
    start = initial_input(noise, tables, None)
    alone = rolled_in(student, start, batch.keys, tables, 1)
    np.testing.assert_array_equal(alone.z, noise)
    assert not seen
    found = rolled_in(student, start, batch.keys, tables, 3)
    assert len(seen) == 2
    assert bool(jnp.all(seen[0] == 1.0))
    assert bool(jnp.all(seen[1] < seen[0]))
    one = np.asarray(found.level.sigma) == 1.0
    np.testing.assert_allclose(one.mean(), 1 / 3, atol=0.04)
    np.testing.assert_array_equal(found.z[one], noise[one])
    # A student of black images: what is left is noise of the level.
    rest = found.z[~one] / expand(found.level.sigma[~one], found.z[~one])
    np.testing.assert_allclose(jnp.std(rest), 1.0, atol=0.03)
    last = np.asarray(seen[1])[~one]
    assert np.all(np.asarray(found.level.sigma)[~one] <= last)


def test_its_loss_is_the_sum_of_both():
    tables, batch = tables_of(linear_path(16)), tiny.batch(8)
    student, fake = tiny.tiny_denoiser(1, "flow"), tiny.tiny_denoiser(2, "flow")
    networks = {"student": student, "fake": fake, "teacher": EXACT}

    @jax.jit
    def run(batch):
        losses = [rcm(consistency_weight=w).student_loss for w in (0.0, 3.0)]
        found = [loss(networks, batch, tables) for loss in losses]
        return *found, rcm().consistency_loss(networks, batch, tables)

    (plain, _, aux), (both, metrics, _), (own, found) = run(batch)
    np.testing.assert_allclose(both - plain, 3.0 * own, rtol=1e-3, atol=1e-6)
    assert set(found) < set(metrics)
    assert "score" in metrics
    assert aux.shared["image"].shape == batch.image.shape


def test_both_losses_weigh_as_in_the_release():
    """Sums over pixels: 100 |F - F' - g|^2, and |x - x' + change|^2 without a factor of 0.5."""
    tables, batch, objective = tables_of(linear_path(16)), tiny.batch(4), rcm()
    student, fake = tiny.tiny_denoiser(1, "flow"), tiny.tiny_denoiser(2, "flow")

    def bound(params):
        return {"student": student.replace(params=params), "fake": fake, "teacher": EXACT}

    def ours(params):
        return jnp.mean(objective.student_loss(bound(params), batch, tables)[0])

    def released(params):
        networks = bound(params)
        image = generate(networks["student"], objective._input(networks, batch, tables)[0])
        fixed = jax.lax.stop_gradient(image)
        level = tables.teacher.at(uniform_index(batch.key("judged level"), *objective._compared()))
        z = add_noise(fixed, normal(batch.key("judged noise"), image), level)
        ends = fake(z, level).x0, EXACT(z, level).x0
        size = jnp.mean(jnp.abs(fixed - ends[1]), axis=(1, 2, 3), keepdims=True)
        matching = jnp.square(image - fixed + (ends[0] - ends[1]) / size)
        own = objective.consistency_loss(networks, batch, tables)[0] * image[0].size
        return jnp.mean(100.0 * own + jnp.sum(matching, axis=(1, 2, 3)))

    found, wanted = jax.jit(lambda p: (jax.grad(ours)(p), jax.grad(released)(p)))(student.params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a * 2 * np.prod(tiny.IMAGE), b, rtol=1e-3, atol=1e-4)


def test_networks_and_costs_of_rcm():
    objective = rcm(learned_weight=True)
    assert [u.trained for u in objective.updates] == [("student", "time_weight"), ("fake",)]
    assert [u.updates(10) for u in objective.updates] == [5, 5]
    assert objective.teacher_calls() == 1.0
    assert rcm(velocity_from="data").teacher_calls(2) == 1.0
    assert objective.requires.teacher
    assert objective.any_steps
    assert objective.sampler == "renoise"
    alarms = objective.diagnostics.alarms({"tangent_rms": 50.0, "saturation": 0.5})
    assert {a.name for a in alarms} == {"tangent", "saturation"}
    assert objective.diagnostics.quality_metric == "diagonal_fd"


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({"backward": "data"}, "backward='data'.*Allowed: rollout"),
        ({"rollout_length": 0}, "rollout_length=0 must be 1 or more"),
        ({"consistency_weight": -1.0}, "consistency_weight=-1.0 must be a number >= 0"),
    ],
)
def test_settings_of_rcm_that_cannot_work_are_refused(hyper, words):
    with pytest.raises(ConfigError, match=words):
        make_objective({"name": "rcm", **hyper})
