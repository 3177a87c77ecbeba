"""Conversions, steps and targets against the papers' own formulas, in float64."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import GaussianDenoiser
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill.diffusion import (
    KINDS,
    WEIGHTS,
    Prediction,
    add_noise,
    clip_x0,
    convert,
    ddim_step,
    error_weight,
    expand,
    fold_weight,
    from_eps,
    from_x0,
    input_scale,
    multistep_x0,
    one_step_target,
    output_of,
    posterior_step,
    snr_step,
)
from ddistill.errors import ConfigError
from ddistill.schedules import (
    Level,
    betas,
    cosine,
    cosine_log_snr,
    from_alphas_cumprod,
    karras,
    linear_beta,
    sigmoid_beta,
    snr,
    subsequence,
    uniform_grid,
)

VP = cosine(1000, dtype=np.float64)
VE = karras(40, dtype=np.float64)
CFD = cosine(1024, clean=False, dtype=np.float64)
TABLES = {"vp": VP, "ve": VE, "cfd": CFD}

both_ways = pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def images(seed=0, count=3, shape=(2, 2, 1)):
    return np.random.default_rng(seed).normal(size=(count, *shape))


def walk(table, indices):
    return [table.at(int(i)) for i in indices]


def textbook_target(x0s, z, levels):
    """Progressive distillation's target as its paper writes it (arXiv 2202.00512, appendix G)."""
    state = z
    for x0, here, there in zip(x0s, levels[:-1], levels[1:]):
        ratio = there.sigma / here.sigma
        state = there.alpha * x0 + ratio * (state - here.alpha * x0)
    first, last = levels[0], levels[-1]
    ratio = last.sigma / first.sigma
    return (state - ratio * z) / (last.alpha - ratio * first.alpha)


@st.composite
def walks(draw, fewest=1, most=6):
    """A table and k + 1 strictly decreasing indices of it; the first level is noisy."""
    table = TABLES[draw(st.sampled_from(sorted(TABLES)))]
    count = draw(st.integers(fewest, most)) + 1
    top = table.num_steps
    chosen = draw(st.sets(st.integers(0, top), min_size=count, max_size=count))
    return table, sorted(chosen, reverse=True)


# -------------------------------------------------------------------------------- predictions


@both_ways
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(TABLES))
def test_outputs_and_predictions_are_inverse(kind, name, transform):
    table, index = TABLES[name], np.array([1, 2, TABLES[name].num_steps])
    x0, eps, level = images(1), images(2), table.at(index)
    z = add_noise(x0, eps, level)
    output = transform(lambda p: output_of(kind, p, z, level, 0.7))(Prediction(x0, eps))
    back = transform(lambda o: convert(kind, o, z, level, 0.7))(output)
    # The one inherent amplification: eps -> x0 by sigma / alpha, x0 -> eps by alpha / sigma.
    for ours, exact in ((back.x0, x0), (back.eps, eps)):
        np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-9)
    again = output_of(kind, back, z, level, 0.7)
    np.testing.assert_allclose(again, output, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(TABLES)), st.data(), st.integers(0, 2**31))
def test_every_kind_says_the_same_of_any_output(name, data, seed):
    """x0 and eps of one conversion always recompose z, whatever the network says."""
    index = data.draw(st.integers(1, TABLES[name].num_steps))
    kind = data.draw(st.sampled_from(KINDS))
    level, z, output = TABLES[name].at(index), images(seed), images(seed + 1)
    said = convert(kind, output, z, level)
    recomposed = level.alpha * said.x0 + level.sigma * said.eps
    scale = 1 + np.abs(level.alpha * said.x0).max()
    np.testing.assert_allclose(recomposed, z, atol=1e-12 * scale)


def test_v_is_alpha_eps_minus_sigma_x0():
    x0, eps, level = images(1), images(2), VP.at(np.array([1, 500, 1000]))
    a, s = expand(level.alpha, x0), expand(level.sigma, x0)
    z, v = a * x0 + s * eps, a * eps - s * x0
    said = convert("v", v, z, level)
    np.testing.assert_allclose(said.x0, a * z - s * v, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(said.eps, s * z + a * v, rtol=1e-12, atol=1e-14)


def test_edm_is_the_papers_preconditioning():
    """arXiv 2206.00364 table 1: D = c_skip x + c_out F(c_in x), at alpha = 1."""
    sd, level, x, f = 0.5, VE.at(np.array([1, 20, 40])), images(3), images(4)
    sigma = expand(level.sigma, x)
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / np.sqrt(sigma**2 + sd**2)
    c_in = 1 / np.sqrt(sigma**2 + sd**2)
    np.testing.assert_allclose(convert("edm", f, x, level, sd).x0, c_skip * x + c_out * f)
    np.testing.assert_allclose(expand(input_scale("edm", level, sd), x), c_in)
    for kind in ("x0", "eps", "v"):
        np.testing.assert_array_equal(input_scale(kind, level, sd), 1)


def test_edm_at_any_alpha_is_edm_of_the_rescaled_image():
    x, f, sd = images(3), images(4), 0.5
    level = VP.at(np.array([3, 400, 900]))
    noise = Level(np.ones(3), level.sigma / level.alpha, level.time)
    ours = convert("edm", f, x, level, sd)
    theirs = convert("edm", f, x / expand(level.alpha, x), noise, sd)
    np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-9)
    np.testing.assert_allclose(ours.eps, theirs.eps, rtol=1e-9)
    np.testing.assert_allclose(
        input_scale("edm", level, sd) * level.alpha, input_scale("edm", noise, sd), rtol=1e-9
    )


def test_edm_with_unit_variance_is_minus_v():
    level, z, output = VP.at(np.array([1, 500, 1000])), images(1), images(2)
    edm, v = convert("edm", output, z, level, 1.0), convert("v", -output, z, level)
    np.testing.assert_allclose(edm.x0, v.x0, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(edm.eps, v.eps, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["v", "edm"])
def test_v_and_edm_do_not_amplify_at_the_noisy_end(kind):
    """In float32 at alpha = 4.8e-5 an eps-prediction is off by 1e-3 in x0; these are not."""
    level = jax.tree.map(np.float32, CFD.at(1024))
    x0, eps = images(1).astype(np.float32), images(2).astype(np.float32)
    z = add_noise(x0, eps, level)
    errors = {}
    for k in (kind, "eps"):
        output = output_of(k, Prediction(x0, eps), z, level)
        errors[k] = np.abs(convert(k, output, z, level).x0 - x0).max()
    assert errors[kind] < 1e-6 < 1e-4 < errors["eps"]


def test_clipping_keeps_z():
    level, z = VP.at(np.array([10, 500, 990])), 2 * images(1)
    before = from_x0(3 * images(2), z, level)
    after = clip_x0(before, z, level, 0.8)
    np.testing.assert_array_equal(after.x0, np.clip(before.x0, -0.8, 0.8))
    a, s = expand(level.alpha, z), expand(level.sigma, z)
    np.testing.assert_allclose(a * after.x0 + s * after.eps, z, rtol=1e-9)
    untouched = clip_x0(before, z, level, 1e9)
    np.testing.assert_allclose(untouched.eps, before.eps, rtol=1e-14)


@pytest.mark.parametrize("call", [convert, output_of])
def test_an_unknown_kind_names_the_nearest(call):
    with pytest.raises(ConfigError, match="Did you mean 'eps'"):
        call("epsilon", images(), images(), VP.at(3))
    with pytest.raises(ConfigError, match="Did you mean 'edm'"):
        input_scale("edn", VP.at(3))


@pytest.mark.parametrize("shape", [(), (2,), (2, 2, 1)])
def test_levels_broadcast_over_examples_of_any_rank(shape):
    index, x0, eps = np.array([5, 900]), images(1, 2, shape), images(2, 2, shape)
    together = add_noise(x0, eps, VP.at(index))
    for i in range(2):
        alone = add_noise(x0[i : i + 1], eps[i : i + 1], VP.at(int(index[i])))
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-15)


# ------------------------------------------------------------------------------ error weights


@pytest.mark.parametrize("name", sorted(TABLES))
def test_error_weights_are_ratios_of_squared_errors(name):
    table, count = TABLES[name], 5
    index = np.linspace(1, table.num_steps, count).astype(int)
    level, z, sd = table.at(index), images(0, count), 0.6
    one, two = from_x0(images(1, count), z, level), from_x0(images(2, count), z, level)

    def mse(kind):
        gap = output_of(kind, one, z, level, sd) - output_of(kind, two, z, level, sd)
        return np.mean(np.square(gap), axis=(1, 2, 3))

    weighted = {w: error_weight(w, level, sigma_data=sd) * mse("x0") for w in WEIGHTS}
    np.testing.assert_allclose(weighted["uniform"], mse("x0"), rtol=1e-12)
    np.testing.assert_allclose(weighted["snr"], mse("eps"), rtol=1e-6)
    np.testing.assert_allclose(
        weighted["truncated_snr"], np.maximum(mse("x0"), mse("eps")), rtol=1e-6
    )
    np.testing.assert_allclose(weighted["edm"], mse("edm"), rtol=1e-6)
    np.testing.assert_allclose(
        weighted["min_snr"], np.minimum(mse("eps"), 5 * mse("x0")), rtol=1e-6
    )
    if name != "ve":
        np.testing.assert_allclose((1 + snr(level)) * mse("x0"), mse("v"), rtol=1e-6)


def test_min_snr_is_bounded_by_gamma_and_unknown_weights_are_refused():
    assert float(error_weight("min_snr", VP.at(1), gamma=3.0)) == 3.0
    with pytest.raises(ConfigError, match="Did you mean 'truncated_snr'"):
        error_weight("truncated", VP.at(1))


# -------------------------------------------------------------------------------------- steps


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 1000), st.data())
def test_the_students_noisy_image_is_the_teachers(T, data):
    teacher = sigmoid_beta(T, dtype=np.float64)
    grid = uniform_grid(T, data.draw(st.integers(1, T)))
    i = data.draw(st.integers(1, len(grid) - 1))
    ours = add_noise(images(1), images(2), subsequence(teacher, grid).at(i))
    np.testing.assert_array_equal(ours, add_noise(images(1), images(2), teacher.at(int(grid[i]))))


@both_ways
def test_ddim_in_the_papers_form_and_as_euler(transform):
    x0, z = images(1), images(2)
    for table in (VP, VE):
        here, there = table.at(np.array([30, 40, 40])), table.at(np.array([29, 3, 0]))
        said = from_x0(x0, z, here)
        ours = transform(lambda p, h=here, t=there: ddim_step(p, z, h, t))(said)
        a, s, a2, s2 = (expand(c, z) for c in (here.alpha, here.sigma, there.alpha, there.sigma))
        np.testing.assert_allclose(ours, a2 * x0 + s2 / s * (z - a * x0), rtol=1e-10, atol=1e-12)
        if table is VE:
            np.testing.assert_allclose(ours, z + (s2 - s) * (z - x0) / s, rtol=1e-9, atol=1e-9)


@both_ways
@pytest.mark.parametrize("grid", [np.arange(1001), uniform_grid(1000, 7)])
def test_the_ancestral_step_is_ddpms_posterior(grid, transform):
    """arXiv 2006.11239 eq. 6 and 7, with the betas of the (sub-sampled) chain."""
    table = subsequence(VP, grid)
    x0, z, noise = images(1, 1), images(2, 1), images(3, 1)
    beta, bar = betas(table), np.square(table.alpha)
    step = transform(posterior_step)
    for t in sorted({1, 2, len(grid) // 2, len(grid) - 1}):
        b, now, before = beta[t - 1], bar[t], bar[t - 1]
        mean = np.sqrt(before) * b / (1 - now) * x0 + np.sqrt(1 - b) * (1 - before) / (1 - now) * z
        deviation = np.sqrt((1 - before) / (1 - now) * b)
        here, there = table.at(t), table.at(t - 1)
        ours = step(from_x0(x0, z, here), z, here, there, noise)
        np.testing.assert_allclose(ours, mean + deviation * noise, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("table", [VP, VE])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_into_a_clean_level_is_the_x0_prediction(table, eta):
    here, z = table.at(5), images(1)
    said = from_x0(images(2), z, here)
    ours = ddim_step(said, z, here, table.at(0), eta, images(3))
    np.testing.assert_array_equal(ours, said.x0)


def test_eta_keeps_the_marginal():
    """Whatever eta is, E and Var of z' given x0 are those of q: mean part and noise add up."""
    here, there, x0, eps = VP.at(700), VP.at(300), images(1), images(2)
    z = add_noise(x0, eps, here)
    for eta in (0.3, 1.0):
        said = Prediction(x0, eps)
        center = ddim_step(said, z, here, there, eta, np.zeros_like(z))
        spread = ddim_step(said, z, here, there, eta, np.ones_like(z)) - center
        kept = (center - there.alpha * x0) / eps
        np.testing.assert_allclose(kept**2 + spread**2, there.sigma**2, rtol=1e-9)
        assert np.all(spread > 0)


FLOAT32 = [cosine(1000), linear_beta(1000), cosine_log_snr(8192), karras(256), cosine(8)]


@pytest.mark.parametrize("table", FLOAT32, ids=["cosine", "linear", "log_snr", "karras", "short"])
def test_steps_between_levels_keep_their_digits_in_float32(table):
    """Between neighbours 1 - q is 1e-3 and less; in steps from the top q is 1e-5 and less."""
    a, s = (np.asarray(x, np.float64) for x in (table.alpha, table.sigma))
    T = table.num_steps
    i = np.concatenate([np.arange(3, T + 1), np.full(T - 2, T)])
    j = np.concatenate([np.arange(2, T), np.arange(2, T)])
    here, there = (table.at(jnp.asarray(k)) for k in (i, j))
    q, lost = snr_step(here, there)
    exact = (a[i] * s[j]) / (a[j] * s[i])
    np.testing.assert_allclose(q, exact, rtol=4e-7)
    np.testing.assert_allclose(lost, 1.0 - exact, rtol=1e-6)
    # Weights of a walk: from the first level over `here` to the one below.
    first, below = table.at(jnp.asarray(i)), table.at(jnp.asarray(j - 1))
    towards = [1.0 - a[k] * s[j - 1] / (a[j - 1] * s[k]) for k in (j, i)]
    np.testing.assert_allclose(fold_weight(first, there, below), towards[0] / towards[1], rtol=2e-6)
    # DPM-Solver++'s factor is the ratio of two steps in log-SNR.
    x0, previous = jnp.ones((len(i), 1)), jnp.zeros((len(i), 1))
    found = multistep_x0(x0, previous, first, there, below)[:, 0] - 1.0
    rho = np.log(a[1:] / s[1:])
    before, after = rho[j - 1] - rho[i - 1], rho[j - 2] - rho[j - 1]
    np.testing.assert_allclose(1.0 + found, 1.0 + after / (2 * before), rtol=2e-6)


@pytest.mark.parametrize("eta", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("step", [(1000, 999), (1000, 700), (1000, 2), (500, 499), (3, 2), (1, 0)])
def test_ancestral_steps_have_the_scales_of_float64(step, eta):
    """Of the predicted noise q remains with eta = 1, however small; of the drawn one 1 - q^2."""
    table = cosine(1000)
    here, there = (table.at(i) for i in step)
    ones = np.ones((1, 1, 1, 1), np.float32)
    kept = ddim_step(Prediction(0 * ones, ones), ones, here, there, eta, 0 * ones).item()
    drawn = ddim_step(Prediction(0 * ones, 0 * ones), ones, here, there, eta, ones).item()
    a, s = (np.asarray(x, np.float64)[list(step)] for x in (table.alpha, table.sigma))
    q = a[0] * s[1] / (a[1] * s[0])
    removed = (1 - q) * (1 + q)
    np.testing.assert_allclose(drawn, eta * s[1] * np.sqrt(removed), rtol=1e-6)
    np.testing.assert_allclose(
        kept, s[1] * np.sqrt((1 - eta) * (1 + eta) + (eta * q) ** 2), rtol=1e-6
    )


def test_betas_are_those_that_a_float32_table_was_made_of():
    beta = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(betas(linear_beta(1000)), beta, rtol=5e-5)
    np.testing.assert_array_equal(betas(karras(10)), 0.0)


def test_noise_is_needed_with_eta():
    with pytest.raises(ValueError, match=r"eta=0.5 needs noise"):
        ddim_step(Prediction(images(), images()), images(), VP.at(9), VP.at(8), eta=0.5)


# ------------------------------------------------------------------------------------- target


def rollout(teacher, z, levels):
    """The states and the x0-predictions of deterministic DDIM steps through the levels."""
    zs, x0s = [z], []
    for here, there in pairwise(levels):
        prediction = teacher(zs[-1], here, None)
        x0s.append(prediction.x0)
        zs.append(ddim_step(prediction, zs[-1], here, there))
    return zs, x0s


@settings(deadline=None, max_examples=150)
@given(walks(), st.integers(0, 2**31))
def test_the_target_is_the_textbooks_and_lands_where_the_rollout_landed(walk_, seed):
    table, indices = walk_
    levels, z = walk(table, indices), images(seed)
    x0s = [images(seed + 1 + j) for j in range(len(indices) - 1)]
    target = one_step_target(x0s, levels)

    # The textbook's own rounding grows with 1 / its denominator.
    ratio = levels[-1].sigma / levels[0].sigma
    slack = 1e-12 / (levels[-1].alpha - ratio * levels[0].alpha)
    magnitude = 1 + np.abs(z).max()
    expected = textbook_target(x0s, z, levels)
    np.testing.assert_allclose(target, expected, rtol=1e-9, atol=slack * magnitude)

    end = z
    for x0, here, there in zip(x0s, levels[:-1], levels[1:]):
        end = ddim_step(from_x0(x0, z=end, level=here), end, here, there)
    landed = ddim_step(from_x0(target, z, levels[0]), z, levels[0], levels[-1])
    np.testing.assert_allclose(landed, end, rtol=1e-6, atol=1e-9 * magnitude)


@settings(deadline=None, max_examples=100)
@given(walks(fewest=2), st.integers(0, 2**31))
def test_the_fold_is_the_convex_combination(walk_, seed):
    """x~ = sum_j (rho_{j+1} - rho_j) x_j / (rho_k - rho_0), where rho_k is finite."""
    table, indices = walk_
    levels = walk(table, indices)
    x0s = [images(seed + j) for j in range(len(indices) - 1)]
    target = one_step_target(x0s, levels)
    if levels[-1].sigma == 0:
        np.testing.assert_array_equal(target, x0s[-1])
        return
    rho = np.array([level.alpha / level.sigma for level in levels])
    weights = np.diff(rho) / (rho[-1] - rho[0])
    expected = sum(w * x0 for w, x0 in zip(weights, x0s))
    np.testing.assert_allclose(target, expected, rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=100)
@given(walks(fewest=2, most=2), st.sampled_from([np.float32, np.float64]))
def test_weights_are_in_0_1_and_exactly_1_at_a_clean_end(walk_, dtype):
    table, indices = walk_
    first, here, there = (jax.tree.map(dtype, level) for level in walk(table, indices))
    weight = fold_weight(first, here, there)
    assert 0 <= weight <= 1
    if there.sigma == 0:
        assert weight == 1


def test_the_weight_of_a_short_step_is_the_published_one():
    assert abs(fold_weight(*walk(CFD, [300, 299, 298])) - 0.5015) < 5e-5


@both_ways
def test_in_float32_the_fold_beats_the_textbook(transform):
    single = [jax.tree.map(np.float32, level) for level in walk(CFD, [1000, 999, 998])]
    rounded = [jax.tree.map(np.float64, level) for level in single]
    x0s = [images(j, 512).clip(-1, 1).astype(np.float32) for j in (1, 2)]
    z = images(3, 512).astype(np.float32)
    exact = textbook_target([x.astype(np.float64) for x in x0s], z.astype(np.float64), rounded)
    ours = transform(lambda xs: one_step_target(xs, single))(x0s)
    theirs = textbook_target(x0s, z, single)
    assert ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - exact).max() < 1e-6 < 1e-4 < np.abs(theirs - exact).max()


@settings(deadline=None, max_examples=60)
@given(walks(), st.floats(-1, 1, width=32))
def test_a_constant_teacher_is_its_own_target(walk_, value):
    table, indices = walk_
    levels = [jax.tree.map(np.float32, level) for level in walk(table, indices)]
    x0s = [np.full((1, 2, 2, 1), value, np.float32)] * (len(indices) - 1)
    np.testing.assert_allclose(one_step_target(x0s, levels), x0s[0], rtol=1e-6)


def test_targets_of_halvings_compose():
    """Two rounds of progressive distillation fold four teacher steps into one student step."""
    levels, x0s = walk(VP, [800, 700, 450, 200, 0]), [images(j) for j in range(4)]
    halves = [one_step_target(x0s[:2], levels[:3]), one_step_target(x0s[2:], levels[2:])]
    np.testing.assert_allclose(
        one_step_target(halves, levels[::2]), one_step_target(x0s, levels), rtol=1e-10
    )


def test_halvings_of_a_gaussian_teacher_reach_its_endpoint():
    """The exact student of each round, in closed form, is the next round's teacher."""
    teacher, z, grid = GaussianDenoiser(0.2, 0.6), images(1), uniform_grid(1000, 8)
    end = rollout(teacher, z, walk(VP, grid[::-1]))[0][-1]
    student = teacher

    def halved(teacher, grid):
        def call(z, level, cond=None):
            i = int(np.flatnonzero(VP.time[grid] == level.time)[0])
            levels = walk(VP, grid[[i, i - 1, i - 2]])
            return from_x0(one_step_target(rollout(teacher, z, levels)[1], levels), z, level)

        return call

    for stride in (1, 2, 4):
        student = halved(student, grid[::stride])
    one = student(z, VP.at(1000))
    np.testing.assert_allclose(ddim_step(one, z, VP.at(1000), VP.at(0)), end, rtol=1e-8)


def test_at_log_snr_20_the_target_is_nearly_the_last_prediction():
    """PD's official code replaces the target by it there; at a clean end it is that exactly."""
    u = np.arange(1, 17) / 16
    b = np.arctan(np.exp(-10.0))
    log_ratio = -2 * np.log(np.tan((np.arctan(np.exp(10.0)) - b) * np.append(0, u) + b))
    table = from_alphas_cumprod(1 / (1 + np.exp(-log_ratio)), clean=False, dtype=np.float64)
    x0s = [images(j).clip(-1, 1) for j in (1, 2)]
    gap = one_step_target(x0s, walk(table, [2, 1, 0])) - x0s[1]
    assert 0 < np.abs(gap).max() < 2e-3
    clean = [*walk(table, [2, 1]), Level(np.float64(1), np.float64(0), np.float64(0))]
    np.testing.assert_array_equal(one_step_target(x0s, clean), x0s[1])


def test_one_prediction_is_its_own_target_and_lengths_must_fit():
    levels = walk(VP, [9, 3, 1])
    np.testing.assert_array_equal(one_step_target([images(4)], levels[:2]), images(4))
    for x0s, some in (([], levels[:1]), ([images()], levels), ([images()] * 3, levels)):
        with pytest.raises(ValueError, match=r"k \+ 1 levels"):
            one_step_target(x0s, some)


def test_gradients_pass_through_steps_into_a_clean_level():
    here, there, z = VP.at(400), VP.at(0), images(1)

    def loss(x0):
        return jnp.sum(posterior_step(from_x0(x0, z, here), z, here, there, images(2)) ** 2)

    np.testing.assert_allclose(jax.grad(loss)(images(3)), 2 * images(3), rtol=1e-12)


def test_from_eps_is_the_inverse_of_adding_noise():
    x0, eps, level = images(1), images(2), VP.at(np.array([1, 400, 900]))
    said = from_eps(eps, add_noise(x0, eps, level), level)
    np.testing.assert_allclose(said.x0, x0, rtol=1e-10, atol=1e-12)
