"""The toy of variational diffusion distillation: the score, the bound, more experts end nearer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddistill.schedules import Level


@pytest.fixture
def toy(benchmarks):
    import vdd_toy

    return vdd_toy


def noised(toy, data, sigma):
    """The log density of the data with noise, `[B, 2]` -> `[B]`."""
    factor = data.cholesky
    covariance = factor @ jnp.swapaxes(factor, -1, -2) + sigma**2 * jnp.eye(2)
    raw = jnp.linalg.cholesky(covariance)
    logs = jnp.tril(raw, -1) + jnp.log(jnp.diagonal(raw, axis1=-2, axis2=-1))[..., None] * jnp.eye(
        2
    )
    return data.replace(factors=logs).log_density


def test_the_score_of_the_denoiser_is_the_gradient_of_the_noised_density(toy):
    data = toy.make_data()
    teacher = toy.Teacher.of(data)
    a = jnp.asarray(np.random.default_rng(0).normal(size=(40, 2)) * 2, jnp.float32)
    for sigma in (0.1, 1.5):
        exact = jax.vmap(jax.grad(lambda x, s=sigma: noised(toy, data, s)(x[None])[0]))(a)
        np.testing.assert_allclose(
            toy.score(teacher, a, jnp.float32(sigma)), exact, rtol=2e-3, atol=2e-3
        )
    # The mixture itself: its density integrates to 1.
    axis = np.linspace(-5, 5, 401)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    total = np.exp(np.asarray(data.log_density(jnp.asarray(points, jnp.float32)))).sum()
    np.testing.assert_allclose(total * (axis[1] - axis[0]) ** 2, 1.0, atol=1e-3)
    level = Level(jnp.float32(0.6), jnp.float32(0.8), jnp.float32(0.0))
    x0 = teacher(a, level).x0
    assert x0.shape == a.shape
    assert np.all(np.isfinite(x0))


@pytest.mark.parametrize("em", [True, False])
def test_the_gradient_is_that_of_the_bound_with_the_density_itself(toy, em):
    """The score times the point stands in for log p, which is never evaluated."""
    data, sigma = toy.make_data(), 0.3
    teacher, student = toy.Teacher.of(data), toy.fresh(jax.random.key(1), 3)
    student = student.replace(weights=jnp.asarray([0.2, -0.5, 0.1]))
    noise = jax.random.normal(jax.random.key(2), (50, 3, 2))
    log_density = noised(toy, data, sigma)

    def exact(experts):
        total = 0.0
        for k, share in enumerate(jax.nn.softmax(student.weights)):
            a = experts.from_components(noise)[:, k]
            values = log_density(a)
            if em:
                values = values + student.log_responsibilities(a)[:, k]
            total = total - share * (jnp.mean(values) + experts.entropies[k])
        return total

    def scores(a):
        return toy.score(teacher, a, jnp.float32(sigma))

    found = jax.grad(toy.bound)(student, student, scores, noise, em)
    wanted = jax.grad(exact)(student)
    for name in ("means", "factors"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(wanted, name), rtol=2e-3, atol=2e-3
        )


def test_divergences_of_equal_mixtures_are_0_and_all_modes_are_found(toy):
    data = toy.make_data()
    own, theirs, modes = toy.measure(data, data, jax.random.key(0), 2**12)
    np.testing.assert_allclose([own, theirs, modes], [0.0, 0.0, 8.0], atol=1e-5)
    half = data.replace(weights=jnp.where(jnp.arange(8) < 4, data.weights, -30.0))
    own, theirs, modes = toy.measure(data, half, jax.random.key(0), 2**12)
    np.testing.assert_allclose(own, np.log(2.0), atol=0.05)
    assert modes == 4
    assert theirs > 5


@pytest.mark.slow
def test_eight_experts_end_nearer_to_the_teacher_than_one(toy, capsys):
    found = toy.main(["--quick", "--seeds=0"])
    one, eight = found[:, 0]
    assert eight[0] < 0.2 * one[0], "KL(student, teacher)"
    assert eight[1] < 0.6 * one[1], "KL(teacher, student)"
    assert eight[2] >= 6
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert all(line.count("|") == 5 for line in rows)
