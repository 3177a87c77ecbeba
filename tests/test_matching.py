"""Distribution matching: its gradient in closed form, who learns from what, and nothing leaks."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import struct
from gaussian import GaussianDenoiser

from ddistill.errors import ConfigError
from ddistill.networks.weights import Weights
from ddistill.objectives import OBJECTIVES, make_objective
from ddistill.objectives.base import bind, init_inputs, trained_auxiliaries
from ddistill.objectives.inputs import Batch, Pairs, Share, make_level_tables
from ddistill.objectives.matching.generator import generator_input, with_gradient
from ddistill.objectives.matching.losses import score_difference
from ddistill.objectives.parts import NetworkFacts, StageFacts
from ddistill.samplers import ddim
from ddistill.schedules import cosine, karras, make_grid, subsequence
from ddistill.training.state import new_state
from ddistill.training.step import make_step
from ddistill.training.step_inputs import StepInputs, StepSettings

IMAGE = (1, 1, 2)


def tables(schedule=None, steps=1, **shown):
    schedule = schedule or cosine(64)
    return make_level_tables(schedule, make_grid(schedule, steps, "trailing"), share=Share(**shown))


NONE = NetworkFacts()


def objective(name="dmd", steps=1, schedule=None, networks=NONE, **hyper):
    if name == "dmd":
        hyper = {"regression_weight": 0.0, **hyper}
    made = make_objective({"name": name, **hyper})
    grid = make_grid(schedule or cosine(64), steps, "trailing")
    return made.prepare(StageFacts(grid, networks))


def batch(count=8, seed=0, image=IMAGE, conditional=False, pairs=None):
    rng = np.random.default_rng(seed)
    labels = jnp.asarray(rng.integers(0, 4, count), jnp.int32)
    return Batch(
        image=jnp.asarray(rng.uniform(-1, 1, (count, *image)), jnp.float32),
        label=labels,
        cond=labels if conditional else None,
        keys=jax.random.split(jax.random.key(seed), count),
        pairs=pairs,
    )


@struct.dataclass
class Linear:
    """A generator x = mean + std z, whatever the level."""

    mean: jax.Array
    std: jax.Array

    def __call__(self, z, level, cond=None, *, key=None):
        x0 = self.mean + self.std * z
        return dataclasses.replace(GaussianDenoiser()(z, level), x0=x0)


@struct.dataclass
class TellsLevel:
    """A generator whose images are ten times the noise of the level that it is asked at."""

    def __call__(self, z, level, cond=None, *, key=None):
        x0 = jnp.zeros_like(z) + 10 * level.sigma[:, None, None, None]
        return dataclasses.replace(GaussianDenoiser()(z, level), x0=x0)


# ----------------------------------------------------------------------------- the direction


def test_equal_denoisers_give_no_gradient():
    networks = {"student": Linear(jnp.float32(0.3), jnp.float32(0.5))}
    networks |= dict.fromkeys(("teacher", "fake"), GaussianDenoiser(1.0, 0.7))

    def total(student):
        values, _, _ = objective().student_loss({**networks, "student": student}, batch(), tables())
        return jnp.sum(values)

    value, gradient = jax.value_and_grad(total)(networks["student"])
    assert value == 0
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


def test_the_direction_is_fake_minus_teacher_over_the_mean_distance():
    rng = np.random.default_rng(0)
    image, fake, teacher = (jnp.asarray(rng.normal(size=(3, 2, 2, 2)), jnp.float32) for _ in "123")
    found = score_difference(image, fake, teacher, 0.0)
    for b in range(3):
        scale = np.abs(np.asarray(image - teacher)[b]).mean()
        np.testing.assert_allclose(found[b], np.asarray(fake - teacher)[b] / scale, rtol=1e-5)
    twice = score_difference(image, teacher + 2 * (fake - teacher), teacher, 0.0)
    np.testing.assert_allclose(twice, 2 * found, rtol=1e-5)
    at_the_teachers = score_difference(teacher, fake, teacher, 1e-6)
    assert np.all(np.isfinite(at_the_teachers))


def test_attach_is_its_value_and_its_gradient():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1)), jnp.float32)
    wanted = jnp.cos(x)
    value = jnp.arange(3.0)
    np.testing.assert_array_equal(with_gradient(value, x, wanted), value)
    found = jax.grad(lambda x: jnp.sum(with_gradient(value, x, wanted)))(x)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mean", [-2.0, 1.0])
def test_the_student_moves_to_the_teachers_mean_and_stays_there(mean):
    """methods.md 5.6.3, with exact denoisers of N(0, 1) and N(mean, 1)."""
    student = Linear(jnp.float32(0.0), jnp.float32(1.0))

    def total(at, teacher):
        networks = {
            "student": student.replace(mean=at),
            "fake": GaussianDenoiser(0.0, 1.0),
            "teacher": GaussianDenoiser(teacher, 1.0),
        }
        return jnp.mean(objective().student_loss(networks, batch(64), tables())[0])

    assert jax.grad(total)(0.0, mean) * mean < 0, "descending moves towards the teacher"
    assert jax.grad(total)(0.0, 0.0) == 0


@pytest.mark.parametrize("schedule", [cosine(64), karras(64)], ids=["cosine", "karras"])
def test_the_gradient_is_the_closed_form(schedule):
    """At every image: what the formula gives for the levels and noise that the loss has drawn."""
    seen = {}

    class Noting(GaussianDenoiser):
        def __call__(self, z, level, cond=None, *, key=None):
            seen["z"], seen["level"] = z, level
            return super().__call__(z, level, cond, key=key)

    student = Linear(jnp.float32(0.2), jnp.float32(0.4))
    networks = {"teacher": Noting(1.0, 0.6), "fake": GaussianDenoiser(0.2, 0.4)}
    # Below a tenth of the levels the two denoisers differ by little more than float32's rounding.
    shown, method = tables(schedule), objective(schedule=schedule, lowest=0.1)
    _, _, aux = method.student_loss({**networks, "student": student}, batch(16), shown)
    image = np.asarray(aux.shared["image"], np.float64)

    def at(image):
        class Fixed:
            def __call__(self, z, level, cond=None, *, key=None):
                return dataclasses.replace(GaussianDenoiser()(z, level), x0=image)

        return jnp.sum(method.student_loss({**networks, "student": Fixed()}, batch(16), shown)[0])

    found = np.asarray(jax.grad(at)(jnp.asarray(image, jnp.float32)))
    alpha, sigma = (
        np.asarray(x, np.float64)[:, None, None, None]
        for x in (seen["level"].alpha, seen["level"].sigma)
    )
    z = np.asarray(seen["z"], np.float64)

    def exact(mean, std):
        return mean + alpha * std**2 * (z - alpha * mean) / ((alpha * std) ** 2 + sigma**2)

    teacher, fake = exact(1.0, 0.6), exact(0.2, 0.4)
    scale = np.abs(image - teacher).mean(axis=(1, 2, 3), keepdims=True) + method.floor
    wanted = (fake - teacher) / scale / np.prod(image.shape[1:])
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-5)
    # The difference of the two scores, alpha (fake - teacher) / sigma^2.
    scores = [(alpha * x - z) / sigma**2 for x in (fake, teacher)]
    np.testing.assert_allclose(
        scores[0] - scores[1], alpha * (fake - teacher) / sigma**2, rtol=1e-5, atol=1e-8
    )


def test_a_linear_generator_reaches_the_targets_mean_and_spread():
    """With the exact fake denoiser of what the generator makes, which is a Gaussian too."""
    schedule, method = cosine(64), objective()
    shown, optimizer = tables(schedule), optax.adam(0.02)
    target = GaussianDenoiser(0.7, 0.3)

    @jax.jit
    def step(student, state, seed):
        keys = jax.random.split(jax.random.key(seed), 128)

        def total(s):
            own = jax.lax.stop_gradient(s)
            fake = GaussianDenoiser(own.mean, jnp.abs(own.std))
            networks = {"student": s, "fake": fake, "teacher": target}
            data = Batch(jnp.zeros((128, *IMAGE)), jnp.zeros(128, jnp.int32), None, keys)
            return jnp.mean(method.student_loss(networks, data, shown)[0])

        changes, state = optimizer.update(jax.grad(total)(student), state)
        return optax.apply_updates(student, changes), state

    student = Linear(jnp.float32(-0.5), jnp.float32(1.0))
    state, means, stds = optimizer.init(student), [], []
    for i in range(400):
        student, state = step(student, state, i)
        means.append(float(student.mean))
        stds.append(abs(float(student.std)))
    assert np.mean(means[-50:]) == pytest.approx(0.7, abs=0.03)
    assert np.mean(stds[-50:]) == pytest.approx(0.3, abs=0.03)


# ---------------------------------------------------------------------- who learns from what


def trained(name, steps=1, conditional=False, **hyper):
    """An objective over tiny networks, as planning prepares it, and its networks' parameters."""
    module = tiny.TinyNet(num_classes=4 if conditional else 0)
    hyper = {"regression_weight": 0.0, **hyper} if name == "dmd" else hyper
    if name != "dmd":
        hyper = {"features": ("last",), **hyper}
    features = {"last": (*tiny.IMAGE[:2], module.width)}
    facts = NetworkFacts(module, "v", teacher_features=features)
    made = objective(name, steps, networks=facts, **hyper)
    params = {}
    modules = {"student": module, **trained_auxiliaries(made)}
    for i, (n, m) in enumerate(modules.items()):
        inputs = init_inputs(made, n, tiny.IMAGE, conditional)
        params[n] = m.init(jax.random.key(i), *inputs)["params"]
    return made, modules, params


def bound(made, modules, params, module=None):
    networks = {n: bind(made, n, modules[n], Weights(p), "v") for n, p in params.items()}
    networks["teacher"] = tiny.tiny_denoiser(9, module=module or modules["student"])
    return networks


METHODS = {
    "dmd": {},
    "pairs": {"name": "dmd", "regression_weight": 0.25},
    "dmd2": {},
    "dmd2_teacher": {
        "name": "dmd2",
        "features_of": "teacher",
        "alternate": True,
        "smooth_weight": 1.0,
    },
    "kl": {"name": "dmd2", "divergence": "kl"},
    "ladd": {},
    "rollout": {"name": "dmd2", "steps": 3, "backward": "rollout"},
    "data": {"name": "dmd2", "steps": 3, "backward": "data"},
}


def setup(which, conditional=False):
    options = {"name": which, **METHODS[which]}
    made, modules, params = trained(conditional=conditional, **options)
    shown = tables(
        steps=made.steps, **({"classes": (1, 3), "num_classes": 4} if conditional else {})
    )
    rng = np.random.default_rng(1)
    noise, image = (jnp.asarray(rng.normal(size=(6, *tiny.IMAGE)), jnp.float32) for _ in "ab")
    pairs = Pairs(noise, jnp.arange(6, dtype=jnp.int32) % 4, image)
    return (
        made,
        modules,
        params,
        shown,
        batch(6, image=tiny.IMAGE, conditional=conditional, pairs=pairs),
    )


def test_the_score_difference_is_weighed_by_ratios_normalised_per_noise_level():
    """On by default: a ratio that depends on the noise level alone weighs nothing."""

    class Level:
        """A discriminator who sees nothing but how noisy images are."""

        def __call__(self, features):
            return jnp.log(features["mid"])

    class Noting:
        def with_features(self, taps):
            def call(z, level, cond=None, *, key=None):
                return GaussianDenoiser()(z, level), {"mid": level.sigma[:, None]}

            return call

        def __call__(self, z, level, cond=None):
            return GaussianDenoiser()(z, level)

    networks = {"student": Linear(jnp.float32(0.0), jnp.float32(1.0)), "teacher": Noting()}
    networks |= {"fake": GaussianDenoiser(0.5, 1.0), "discriminator": Level()}
    shown, data = tables(), batch(32)

    def score(**hyper):
        made = objective("dmd2", features_of="teacher", **hyper)

        @jax.jit
        def value(data):
            given, _ = made._input(networks, data, shown)
            image = jnp.zeros((32, *IMAGE)) + 0.1
            return made._judgements(networks, image, given, data, shown)[0][1][0]

        return np.sqrt(np.asarray(value(data)))

    plain = score()
    weights = {bins: score(divergence="kl", ratio_bins=bins) / plain for bins in (0, 1, 10, 64)}
    np.testing.assert_allclose(weights[64], 1.0, rtol=1e-4)
    assert weights[0].max() > 1.3
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-4)
    assert np.abs(weights[10] - 1.0).max() < np.abs(weights[0] - 1.0).max() / 2
    np.testing.assert_array_equal(score(divergence="kl") / plain, weights[10])


def test_means_of_ratios_go_from_step_to_step_with_the_discriminators_weights():
    """Whether the student's update is due or not: a step's state has the form of the last one's."""
    made, modules, params = trained("dmd2", divergence="kl", ratio_ema=0.5)
    shapes = init_inputs(made, "discriminator", tiny.IMAGE, False)
    drawn = jax.jit(modules["discriminator"].init)(jax.random.key(0), *shapes)
    statistics = {"discriminator": drawn["batch_stats"]}
    shown, data = tables(), batch(6, image=tiny.IMAGE)
    networks = bound(made, modules, params)

    @jax.jit
    def renewed(before):
        weights = Weights(params["discriminator"], before)
        judge = bind(made, "discriminator", modules["discriminator"], weights, "v")
        aux = made.student_loss({**networks, "discriminator": judge}, data, shown)[2]
        return aux.statistics["discriminator"]

    found, before = [], statistics["discriminator"]
    for _ in range(2):
        before = renewed(before)
        found.append(np.asarray(before["ratio_mean"]))
    seen = found[0] != 1.0
    assert 0 < seen.sum() < 10
    # From 1 half of the way to the batch's means, and half of the rest.
    np.testing.assert_allclose((found[1] - found[0])[seen], (found[0] - 1.0)[seen] / 2, rtol=1e-4)

    optimizers = {name: optax.sgd(1.0) for name in params}
    step = make_step(StepSettings(made, modules, "v", optimizers))
    state = new_state(params, optimizers, (), statistics)
    inputs = StepInputs(networks["teacher"], shown)
    after, _ = jax.eval_shape(step, state, inputs, data.image, data.label, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    # Where only the batch's own means count there is nothing to keep.
    assert not trained("dmd2", divergence="kl")[1]["discriminator"].ratio_bins


def test_bins_of_a_ratio_that_weighs_nothing_are_no_part_of_a_stages_digest():
    bins = {"ratio_bins", "ratio_ema"}
    assert bins <= set(objective("dmd2").inert_hparams())
    kl = objective("dmd2", divergence="kl")
    assert not bins & set(kl.inert_hparams())
    assert kl.requires.whole_batch, "its means are over the batch"


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("which", METHODS)
def test_no_gradient_leaks_into_what_is_not_trained(which, conditional):
    made, modules, params, shown, data = setup(which, conditional)
    student, guidance = made.updates
    networks = bound(made, modules, params)
    data = dataclasses.replace(data, shared=made.generate(networks, data, shown))
    teacher = networks["teacher"]

    for update in (student, guidance):

        def total(params, inputs, update=update):
            networks = {**bound(made, modules, params), "teacher": inputs}
            return jnp.sum(update.loss(networks, data, shown)[0])

        found, to_teacher = jax.grad(total, argnums=(0, 1))(params, teacher)
        # The step differentiates with respect to what is trained; the others must not matter to
        # what the loss says of those, and the teacher must not be asked to change at all.
        assert set(update.trained) <= set(params)
        for name in update.trained:
            norm = optax.tree.norm(found[name])
            assert np.isfinite(norm)
            assert norm > 0, f"{name} learns nothing"
        if update is student:
            others = {n: g for n, g in found.items() if n != "student"}
            chex.assert_trees_all_equal(others, jax.tree.map(jnp.zeros_like, others))
            chex.assert_trees_all_equal(to_teacher, jax.tree.map(jnp.zeros_like, to_teacher))
        else:
            assert optax.tree.norm(found["student"]) == 0


@pytest.mark.parametrize("which", METHODS)
def test_losses_are_per_example_and_metrics_finite(which):
    made, modules, params, shown, data = setup(which)
    networks = bound(made, modules, params)
    values, metrics, aux = made.student_loss(networks, data, shown)
    chex.assert_shape(values, (6,))
    chex.assert_tree_all_finite((values, metrics))
    data = dataclasses.replace(data, shared=aux.shared)
    values, metrics = made.guidance_loss(networks, data, shown)
    chex.assert_shape(values, (6,))
    chex.assert_tree_all_finite((values, metrics))


def test_the_images_that_the_student_learns_from_are_those_that_the_others_learn_from():
    made, modules, params, shown, data = setup("dmd2", conditional=True)
    networks = bound(made, modules, params)
    _, _, aux = made.student_loss(networks, data, shown)
    again = made.generate(networks, data, shown)
    chex.assert_trees_all_close(aux.shared, again, atol=1e-6)
    assert set(np.asarray(again["cond"])) <= {1, 3}, "classes of others were asked for"


def test_the_smoothness_penalty_moves_images_and_not_their_noise():
    """A change along the noise that is added anyway would be one of the noise level."""
    made, modules, params, shown, data = setup("dmd2_teacher")
    networks, seen = bound(made, modules, params), []

    class Noting:
        def with_features(self, taps):
            def call(z, level, cond=None, *, key=None):
                seen.append((z, level))
                return networks["teacher"].with_features(taps)(z, level, cond)

            return call

    _, _, aux = made.student_loss(networks, data, shown)
    data = dataclasses.replace(data, shared=aux.shared)
    made.guidance_loss({**networks, "teacher": Noting()}, data, shown)
    (z, level), (moved, same_level) = seen[1:]
    chex.assert_trees_all_equal(level, same_level)
    alpha, sigma = (x.reshape(-1, 1, 1, 1) for x in (level.alpha, level.sigma))
    noise = (z - alpha * data.image) / sigma
    change = (moved - z) / (alpha * made.smooth_step)
    assert float(jnp.std(change)) == pytest.approx(1.0, abs=0.25)
    assert abs(np.corrcoef(np.ravel(noise), np.ravel(change))[0, 1]) < 0.3


def test_pairs_are_regressed_onto_in_the_same_call():
    made, modules, params, shown, data = setup("pairs", conditional=True)
    networks = bound(made, modules, params)
    _, metrics, _ = made.student_loss(networks, data, shown)
    level = shown.student.at(jnp.ones(6, jnp.int32))
    image = networks["student"](data.pairs.noise, level, data.pairs.label).x0
    wanted = jnp.mean(jnp.square(image - data.pairs.image))
    np.testing.assert_allclose(metrics["regression"], wanted, rtol=1e-5)


# ---------------------------------------------------------------------------- the generator


def test_a_one_step_student_begins_as_the_teachers_answer_to_noise():
    schedule = karras(32)
    teacher = GaussianDenoiser(0.5, 0.2)
    shown = tables(schedule)
    data = batch(16)
    asked = generator_input(teacher, data, data.keys, shown, "none", 1)
    noise = asked.z / schedule.sigma[-1]
    chex.assert_trees_all_close(
        ddim(teacher, subsequence(schedule, [0, 32]), noise),
        teacher(asked.z, asked.level).x0,
        atol=1e-5,
    )


def test_rollout_is_the_students_own_way_down():
    """Levels are visited as the sampler visits them: z at level i comes from x0 at level i + 1."""
    steps, shown = 3, tables(steps=3)
    asked = generator_input(
        TellsLevel(),
        batch(64),
        batch(64).keys,
        shown,
        "rollout",
        steps,
    )
    alpha, sigma = (
        np.asarray(x)[:, None, None, None] for x in (asked.level.alpha, asked.level.sigma)
    )
    top = np.asarray(asked.level.sigma) == float(shown.student.sigma[3])
    assert 5 < top.sum() < 60
    # Below the top every z is the noise of the level above it, which this student makes at that
    # level, noised to its own.
    above = {float(shown.student.sigma[i]): float(shown.student.sigma[i + 1]) for i in (1, 2)}
    made = np.array([above.get(float(s), np.nan) for s in np.asarray(asked.level.sigma)])
    residual = (np.asarray(asked.z) - alpha * 10 * made[:, None, None, None]) / sigma
    assert len(np.unique(made[~top])) == 2
    for level in np.unique(made[~top]):
        assert residual[made == level].mean() == pytest.approx(0.0, abs=0.4)
        assert residual[made == level].std() == pytest.approx(1.0, abs=0.3)
    from_data = generator_input(None, batch(64), batch(64).keys, shown, "data", steps)
    chex.assert_trees_all_equal(from_data.level, asked.level)


# -------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        (
            {"score_weight": 0.0, "gan_weight": 0.0},
            r"both 0; set one above 0. Regression on pairs \(regression_weight\) is a term beside",
        ),
        ({"lowest": 0.9, "highest": 0.1}, "shares"),
        ({"divergence": "kl", "gan_weight": 0.0}, "discriminator"),
        ({"divergence": "lk"}, "kl"),
        ({"ratio_bins": 5}, "ratio_bins=5 has no effect"),
        ({"ratio_ema": 0.5}, "ratio_ema=0.5 has no effect: the weights of"),
        ({"divergence": "js", "ratio_bins": 0, "ratio_ema": 0.5}, "ratio_bins is 0"),
        ({"divergence": "js", "ratio_ema": 1.0}, r"ratio_ema=1.0 must be in \[0, 1\)"),
        ({"divergence": "kl", "ratio_bins": -1}, "ratio_bins=-1 must be an integer: 0"),
        ({"divergence": "kl", "ratio_bins": 2.5}, "ratio_bins=2.5 must be an integer"),
        ({"alternate": True, "student_every": 1}, "pause"),
        ({"features": ()}, "feature tap"),
        ({"floor": -1.0}, ">= 0"),
        ({"gan_weight": 0.0, "smooth_weight": 1.0}, "smooth_weight=1.0 has no effect"),
        ({"filter_pairs": True}, "filter_pairs=True has no effect"),
        ({"discriminator_weight": 0.0}, "as it was drawn"),
        ({"backward": "rolout"}, "rollout"),
        ({"gan_weight": 0.0, "features_of": "teacher"}, "features_of='teacher' has no effect"),
        ({"gan_weight": 0.0, "features": ("down_0",)}, "features=.* has no effect"),
        ({"gan_weight": 0.0, "discriminator_weight": 7.0}, "discriminator_weight=7.0 has no"),
        ({"smooth_step": 5.0}, "smooth_step=5.0 has no effect: objective.smooth_weight is 0"),
        ({"regression": "classifier"}, "regression='classifier' has no effect"),
        ({"score_weight": 0.0, "floor": 1.0}, "floor=1.0 has no effect"),
        (
            {"score_weight": 0.0, "features_of": "teacher", "fake_weight": "snr"},
            "fake_weight='snr' has no effect",
        ),
    ],
)
def test_settings_that_cannot_work(hyper, words):
    with pytest.raises(ConfigError, match=words):
        OBJECTIVES["dmd2"](**hyper)


def test_a_student_of_several_steps_has_to_say_where_it_starts():
    with pytest.raises(ConfigError, match="rollout"):
        objective("dmd", steps=4)
    for backward in ("data", "rollout"):
        with pytest.raises(ConfigError, match="of one step: .* noisiest level as its only input"):
            objective("dmd", steps=1, backward=backward)


def test_teacher_calls():
    assert objective("dmd").teacher_calls() == 1
    assert objective("dmd2").teacher_calls() == pytest.approx(0.2)
    fastgen = objective("dmd2", features_of="teacher", alternate=True)
    assert fastgen.teacher_calls() == pytest.approx(0.2 + 0.8 * 2)
    # With guidance the score costs two calls, and the features that a discriminator sees one each.
    assert fastgen.teacher_calls(2) == pytest.approx(0.2 * 2 + 0.8 * 2)
    assert objective("dmd").teacher_calls(2) == 2


@pytest.mark.parametrize("which", METHODS)
def test_nothing_is_asked_of_a_network_twice(which):
    """Calls of a step, counted: methods.md 7's arithmetic, and what `teacher_calls` says."""
    made, modules, params, shown, data = setup(which)
    networks, calls = bound(made, modules, params), {}

    def counting(name, network):
        def count():
            calls[name] = calls.get(name, 0) + 1

        class Counting:
            def __call__(self, *args, **kwargs):
                count()
                return network(*args, **kwargs)

            def with_features(self, taps):
                count()
                return network.with_features(taps)

        return Counting()

    counted = {n: net if n == "discriminator" else counting(n, net) for n, net in networks.items()}
    _, _, aux = made.student_loss(counted, data, shown)
    walk = made.steps - 1 if made.backward == "rollout" else 0
    # The images of pairs come from noise of their own.
    student = {"student": 1 + walk + (which == "pairs"), "teacher": 1, "fake": 1}
    if which == "ladd":
        del student["fake"]
    assert calls == student
    calls.clear()
    made.guidance_loss(counted, dataclasses.replace(data, shared=aux.shared), shown)
    real = bool(made.gan_weight)
    if made.features_of == "teacher" and real:
        wanted = {"teacher": 2 + bool(made.smooth_weight)} | (
            {"fake": 1} if which != "ladd" else {}
        )
    else:
        wanted = {"fake": 1 + real}
    assert calls == wanted, "the generator's images are made once"
    share = 1 / made.student_every
    guided = wanted.get("teacher", 0) * ((1 - share) if made.alternate else 1)
    assert made.teacher_calls() == pytest.approx(share * 1 + guided)
