"""Noise tables against published constants, grids against their defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddistill import schedules
from ddistill.errors import ConfigError
from ddistill.schedules import (
    SCHEDULES,
    SPACINGS,
    betas,
    check_grid,
    cosine,
    from_alphas_cumprod,
    index_time,
    karras,
    linear_beta,
    linear_path,
    listed_beta,
    log_snr,
    log_snr_grid,
    logistic_beta,
    make_grid,
    make_schedule,
    scaled_linear_beta,
    sigmoid_beta,
    snr,
    subsequence,
    uniform_grid,
)


def listed(T, dtype=np.float32):
    """`listed_beta` of as many betas as are asked for, in the others' form."""
    return listed_beta(T, np.linspace(1e-4, 0.02, T), dtype=dtype)


ALL = [SCHEDULES[name] for name in sorted(SCHEDULES) if name != "listed_beta"] + [listed]


def abar(schedule):
    return np.square(np.asarray(schedule.alpha, np.float64))


@st.composite
def sizes(draw):
    T = draw(st.integers(1, 1200))
    return T, draw(st.integers(1, T))


# ------------------------------------------------------------------------------------- tables


def test_cosine_table_of_cfd_has_the_released_numbers():
    table = cosine(1024, clean=False)
    assert table.alpha.shape == (1025,)
    np.testing.assert_allclose(abar(table)[0], 0.99995978, atol=5e-9 + 6e-8)
    np.testing.assert_allclose(abar(table)[1023], 2.31e-6, rtol=3e-3)
    np.testing.assert_allclose(abar(table)[1024], 2.3117e-9, rtol=3e-5)
    np.testing.assert_allclose(table.alpha[1024], 4.81e-5, rtol=1e-3)
    np.testing.assert_allclose(table.sigma[0], 0.00634, rtol=1e-3)
    np.testing.assert_array_equal(table.time, np.arange(1025))


def test_sigmoid_table_of_sfddm_has_the_released_numbers():
    table = sigmoid_beta(1024)
    np.testing.assert_allclose(abar(table)[1], 0.99971, atol=5e-6)
    assert (table.alpha[0], table.sigma[0]) == (1.0, 0.0)
    np.testing.assert_array_equal(table.time, np.arange(-1, 1024))


@pytest.mark.parametrize(
    "levels, residual, alpha",
    [
        (128, 0.0021, 0.046),
        (16, 0.0218, 0.148),
        (8, 0.052, 0.229),
        (4, 0.148, 0.385),
        (2, 0.498, None),
        (1, 0.9997, None),
    ],
)
def test_leading_grid_leaves_the_published_residual_signal(levels, residual, alpha):
    top = subsequence(sigmoid_beta(1024), uniform_grid(1024, levels, "leading")).at(levels)
    assert abs(float(top.alpha) ** 2 - residual) < 0.5 * 10.0 ** -len(str(residual)[2:])
    assert alpha is None or abs(float(top.alpha) - alpha) < 5e-4


def test_linear_and_scaled_linear_tables_have_the_known_noise_ranges():
    ddpm = linear_beta(1000)
    np.testing.assert_allclose(abar(ddpm)[-1], 4.0358e-5, rtol=1e-4)
    np.testing.assert_allclose(betas(linear_beta(1000, dtype=np.float64))[[0, -1]], [1e-4, 0.02])
    latent = scaled_linear_beta(1000)
    noise = latent.sigma[1:] / latent.alpha[1:]
    np.testing.assert_allclose(noise[[0, -1]], [0.0292, 14.6146], rtol=2e-3)


def test_karras_levels_are_edms_and_end_at_zero():
    table = karras(18)
    edm = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(table.sigma, np.append(edm, 0)[::-1], rtol=1e-6)
    np.testing.assert_allclose(table.time[1:], np.log(edm[::-1]) / 4, rtol=1e-5)
    assert table.time[0] == table.time[1]
    np.testing.assert_array_equal(table.alpha, 1)
    np.testing.assert_allclose(karras(1).sigma, [0, 80])


@pytest.mark.parametrize("constructor", ALL)
@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_every_table_is_clean_at_0_and_noisier_at_every_step(constructor, T):
    table = constructor(T)
    assert table.num_steps == T
    assert all(t.shape == (T + 1,) and t.dtype == np.float32 for t in vars(table).values())
    assert (table.alpha[0], table.sigma[0]) == (1.0, 0.0)
    assert np.all(np.isfinite(table.time))
    exact = constructor(T, dtype=np.float64)
    assert np.all(np.diff(exact.alpha / np.maximum(exact.sigma, 1e-9)) < 0)
    if constructor not in (karras, linear_path):
        np.testing.assert_allclose(exact.alpha**2 + exact.sigma**2, 1, rtol=1e-14)
        assert np.all((betas(exact) > 0) & (betas(exact) < 1))


@pytest.mark.parametrize("constructor", ALL)
def test_float32_tables_are_rounded_float64_tables(constructor):
    single, double = constructor(1000), constructor(1000, dtype=np.float64)
    for name in ("alpha", "sigma", "time"):
        # 1 - abar computed in float32 is off by 1e-4 at the first level.
        np.testing.assert_allclose(getattr(single, name), getattr(double, name), rtol=6e-8)


def test_a_table_of_alphas_cumprod_is_kept_with_or_without_a_clean_level():
    values = [0.9, 0.5, 0.1]
    clean, noisy = from_alphas_cumprod(values), from_alphas_cumprod(values, clean=False)
    np.testing.assert_allclose(abar(clean), [1, 0.9, 0.5, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(clean.time, [-1, 0, 1, 2])
    np.testing.assert_allclose(abar(noisy), values, rtol=1e-6)
    np.testing.assert_array_equal(noisy.time, [0, 1, 2])
    for i in range(3):  # schedule index i + 1 is table index i
        assert clean.at(i + 1) == noisy.at(i)


def test_snr_is_infinite_at_the_clean_end_only():
    table = cosine(10)
    ratio = snr(table)
    assert ratio[0] == np.inf
    np.testing.assert_allclose(ratio[1:], abar(table)[1:] / (1 - abar(table)[1:]), rtol=1e-3)
    np.testing.assert_allclose(log_snr(table)[1:], np.log(ratio[1:]), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- lookup


@pytest.mark.parametrize("as_jax", [False, True])
def test_at_looks_up_numbers_arrays_and_traced_indices(as_jax):
    table = cosine(8)
    table = jax.tree.map(jnp.asarray, table) if as_jax else table
    index = np.array([0, 8, 3])
    for level in (table.at(index), table.at(jnp.asarray(index)), jax.jit(table.at)(index)):
        np.testing.assert_array_equal(level.alpha, np.asarray(table.alpha)[index])
        np.testing.assert_array_equal(level.sigma, np.asarray(table.sigma)[index])
        np.testing.assert_array_equal(level.time, [-1, 7, 2])
    assert np.shape(table.at(3).alpha) == ()
    assert table.at(3).time == 2


@pytest.mark.parametrize("index", [-1, 9])
def test_at_refuses_an_index_beyond_the_table(index):
    with pytest.raises(IndexError, match=r"0 to 8"):
        cosine(8).at(index)


# -------------------------------------------------------------------------------------- grids


@settings(deadline=None, max_examples=150)
@given(sizes(), st.sampled_from(SPACINGS), st.sampled_from([cosine, sigmoid_beta, karras]))
def test_every_grid_increases_strictly_from_0_and_reaches_its_top(size, spacing, constructor):
    T, N = size
    grid = make_grid(constructor(T), N, spacing)
    assert grid.shape == (N + 1,)
    assert np.issubdtype(grid.dtype, np.integer)
    assert grid[0] == 0
    assert np.all(np.diff(grid) >= 1)
    assert grid[-1] == (1 + (N - 1) * T // N if spacing == "leading" else T)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_as_many_steps_as_levels_take_them_all(spacing):
    np.testing.assert_array_equal(make_grid(cosine(37), 37, spacing), np.arange(38))


def test_trailing_grid_of_100_of_1024_ends_at_the_noisiest_level():
    grid = uniform_grid(1024, 100)
    mapped = grid[1:] - 1  # SFDDM counts its teacher's noisy levels from 0
    np.testing.assert_array_equal(mapped, np.floor(np.arange(1, 101) * 10.24 + 0.5) - 1)
    assert mapped[-1] == 1023


def test_leading_grid_is_the_released_mapping():
    np.testing.assert_array_equal(uniform_grid(1024, 128, "leading")[1:] - 1, np.arange(128) * 8)
    church = [int(10.24 * i) for i in range(100)]
    np.testing.assert_array_equal(uniform_grid(1024, 100, "leading")[1:] - 1, church)


def test_quadratic_grid_is_dense_at_the_clean_end():
    np.testing.assert_array_equal(uniform_grid(100, 5, "quadratic"), [0, 4, 16, 36, 64, 100])
    np.testing.assert_array_equal(uniform_grid(8, 6, "quadratic"), [0, 1, 2, 3, 4, 6, 8])


@pytest.mark.parametrize("clean", [True, False])
def test_log_snr_grid_is_even_in_log_snr(clean):
    # A table whose own steps are fine; a cosine's last steps are longer than the gaps.
    products = abar(linear_beta(4000, 2.5e-5, 5e-3, dtype=np.float64))[1:]
    table = from_alphas_cumprod(products, clean, dtype=np.float64)
    first = 1 if clean else 0

    def gaps(grid):
        return np.diff(np.asarray(log_snr(subsequence(table, grid)))[first:])

    even, uneven = gaps(log_snr_grid(table, 8)), gaps(uniform_grid(table.num_steps, 8))
    assert np.abs(even / even.mean() - 1).max() < 0.1
    assert np.abs(uneven / uneven.mean() - 1).max() > 0.3


def test_explicit_grid_overrides_steps_and_spacing():
    np.testing.assert_array_equal(
        make_grid(cosine(9), 3, "nonsense", explicit=(0, 2, 9)), [0, 2, 9]
    )


@pytest.mark.parametrize(
    "grid, message",
    [
        ([1, 2, 3], "first index must be 0"),
        ([0, 2, 2, 5], "entry 1 is 2 and entry 2 is 2"),
        ([0, 5, 3], "increase strictly"),
        ([0, 4, 11], "goes to 11.*last index is 10"),
        ([0], "two or more"),
        ([0.0, 2.5], "integers"),
        (list(range(13)), "12.*has 10 steps"),
    ],
)
def test_lists_that_are_no_grid_are_refused(grid, message):
    with pytest.raises(ConfigError, match=message):
        check_grid(grid, 10)
    with pytest.raises(ConfigError, match=message):
        subsequence(cosine(10), grid)


@pytest.mark.parametrize("N", [0, 11, 2.5, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_more_steps_than_levels_are_refused(N, spacing):
    with pytest.raises(ConfigError, match=r"Allowed: 1 to 10"):
        make_grid(cosine(10), N, spacing)


def test_an_unknown_spacing_names_the_nearest():
    for call in (lambda: uniform_grid(10, 2, "trialing"), lambda: make_grid(cosine(9), 2, "trail")):
        with pytest.raises(ConfigError, match="Did you mean 'trailing'"):
            call()
    with pytest.raises(ConfigError, match="log_snr_grid"):
        uniform_grid(10, 2, "log_snr")


# -------------------------------------------------------------------------------- subsequences


@settings(deadline=None, max_examples=60)
@given(sizes(), st.sampled_from(("trailing", "leading", "quadratic")))
def test_the_students_chain_has_the_teachers_marginals(size, spacing):
    T, N = size
    teacher = sigmoid_beta(T, dtype=np.float64)
    grid = uniform_grid(T, N, spacing)
    student = subsequence(teacher, grid)
    np.testing.assert_array_equal(student.alpha, teacher.alpha[grid])
    np.testing.assert_array_equal(student.sigma, teacher.sigma[grid])
    np.testing.assert_array_equal(student.time, teacher.time[grid])
    beta = betas(student)
    assert np.all((beta >= 0) & (beta < 1))
    np.testing.assert_allclose(np.cumprod(1 - beta), abar(teacher)[grid[1:]], rtol=1e-9)


def test_explicit_maps_and_repeated_subsequences_compose():
    teacher = cosine(16)
    first, second = np.array([0, 2, 3, 8, 15]), np.array([0, 1, 4])
    twice = subsequence(subsequence(teacher, first), second)
    once = subsequence(teacher, first[second])
    np.testing.assert_array_equal(twice.alpha, once.alpha)
    np.testing.assert_array_equal(twice.time, [-1, 1, 14])


def test_subsequence_takes_a_traced_grid():
    table, grid = cosine(16), np.array([0, 4, 16])
    traced = jax.jit(lambda g: subsequence(table, g))(jnp.asarray(grid))
    np.testing.assert_array_equal(traced.alpha, subsequence(table, grid).alpha)


def test_index_time_counts_the_students_own_levels():
    student = index_time(subsequence(cosine(64), uniform_grid(64, 4)))
    np.testing.assert_array_equal(student.time, [-1, 0, 1, 2, 3])
    assert student.time.dtype == np.float32
    np.testing.assert_array_equal(student.alpha, cosine(64).alpha[::16])


def test_listed_betas_are_those_of_the_table():
    table = linear_beta(50, 0.001, 0.3)
    again = listed_beta(50, np.linspace(0.001, 0.3, 50))
    np.testing.assert_array_equal(again.alpha, table.alpha)
    np.testing.assert_array_equal(again.time, table.time)


def test_logistic_betas_pass_the_middle_between_their_ends():
    table = logistic_beta(101, 0.01, 0.21, dtype=np.float64)
    beta = 1 - np.square(table.alpha[1:] / table.alpha[:-1])
    np.testing.assert_allclose(beta[50], 0.11, rtol=1e-9)
    np.testing.assert_allclose(beta[0], 0.01 + 0.2 / (1 + np.exp(6)), rtol=1e-9)
    np.testing.assert_allclose(beta + beta[::-1], 0.22, rtol=1e-9)


# ------------------------------------------------------------------------------ make_schedule


@pytest.mark.parametrize(
    "name, options",
    [
        ("cosine", {"clean": False, "s": 0.01}),
        ("karras", {"rho": 5.0}),
        ("linear_beta", {"end": 0.9}),
    ],
)
def test_make_schedule_calls_the_constructor(name, options):
    made, direct = make_schedule(name, 12, **options), SCHEDULES[name](12, **options)
    np.testing.assert_array_equal(made.sigma, direct.sigma)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_schedule("cosin", 10), "Did you mean 'cosine'"),
        (lambda: listed_beta(3, [0.1, 0.2]), r"schedule.steps=3 need as many"),
        (lambda: listed_beta(2, [0.1, 1.0]), r"from 0.1 to 1.0; allowed is 0 < beta < 1"),
        (lambda: logistic_beta(5, end=2.0), r"end=2.0 must lie between 0 and 1"),
        (lambda: make_schedule("karras", 10, sigma_mim=1.0), "Did you mean 'sigma_min'"),
        (lambda: make_schedule("cosine", 10, dtype=np.float64), "not an option of 'cosine'"),
        (lambda: make_schedule("cosine", 0), "1 or more"),
        (lambda: make_schedule("cosine", 10.0), "1 or more"),
        (lambda: cosine(10, max_beta=1.0), "max_beta=1.0 must lie between 0 and 1"),
        (lambda: cosine(10, s=-1.0), "s=-1.0 must be 0 or more"),
        (lambda: karras(10, sigma_min=90.0), "sigma_min < sigma_max"),
        (lambda: sigmoid_beta(10, start=3.0, end=-3.0), "start must be below end"),
        (lambda: linear_beta(10, end=2.0), "end=2.0 must lie between 0 and 1"),
        (lambda: from_alphas_cumprod([0.5, 0.6]), "entries 0 and 1 are 0.5 and 0.6"),
        (lambda: from_alphas_cumprod([1.5, 0.6]), "0 < abar <= 1"),
        (lambda: from_alphas_cumprod([0.5, 0.0, 0.0]), "0 < abar <= 1, and 0 for the last"),
        (lambda: linear_beta(1, zero_snr=True), "zero_snr=True needs 2 steps or more"),
        (lambda: from_alphas_cumprod([]), "or longer is needed"),
    ],
)
def test_what_cannot_work_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_unknown_names_list_what_is_allowed():
    with pytest.raises(ConfigError) as caught:
        schedules.make_schedule("vp", 10)
    assert all(name in str(caught.value) for name in SCHEDULES)
