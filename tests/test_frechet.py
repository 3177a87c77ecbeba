"""Frechet distance against closed forms and scipy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg
from scored import frechet_of

from ddistill.evaluation.metrics.frechet import Moments, frechet_distance, moments


def _random_cov(rng, dim, rank=None):
    a = rng.normal(size=(dim, rank or dim + 3))
    return a @ a.T / a.shape[1]


def _rotation(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def test_one_dimension_closed_form():
    # (m1 - m2)^2 + (s1 - s2)^2
    got = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([-2.0]), np.array([[0.25]]))
    assert got == pytest.approx(9.0 + 1.5**2, rel=1e-12)


def test_commuting_covariances_closed_form():
    rng = np.random.default_rng(0)
    basis = _rotation(rng, 6)
    a, b = rng.uniform(0.1, 3, size=(2, 6))
    m1, m2 = rng.normal(size=(2, 6))
    want = np.sum((m1 - m2) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    got = frechet_distance(m1, basis * a @ basis.T, m2, basis * b @ basis.T)
    assert got == pytest.approx(want, rel=1e-11)


@pytest.mark.parametrize("dim", [2, 5, 40])
def test_general_covariances_against_sqrtm(dim):
    rng = np.random.default_rng(dim)
    c1, c2 = _random_cov(rng, dim), _random_cov(rng, dim)
    assert not np.allclose(c1 @ c2, c2 @ c1)
    m1, m2 = rng.normal(size=(2, dim))
    root = scipy.linalg.sqrtm(c1 @ c2)
    want = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * np.real(root))
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(want, rel=1e-9)


def test_is_symmetric_and_zero_on_itself():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 8)), rng.normal(size=(70, 8)) * 2 + 1
    assert frechet_of(x, y) == pytest.approx(frechet_of(y, x), rel=1e-10)
    assert 0 <= frechet_of(x, x) < 1e-10
    assert frechet_of(x, x[::-1]) < 1e-10


def test_invariant_under_orthogonal_maps_and_shifts():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(60, 7)), rng.gamma(2.0, size=(80, 7))
    q, shift = _rotation(rng, 7), rng.normal(size=7)
    assert frechet_of(x @ q + shift, y @ q + shift) == pytest.approx(frechet_of(x, y), rel=1e-9)


def test_scales_with_the_square():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 5)), rng.normal(size=(60, 5)) + 0.3
    assert frechet_of(3 * x, 3 * y) == pytest.approx(9 * frechet_of(x, y), rel=1e-10)


def test_singular_covariances():
    rng = np.random.default_rng(4)
    dim = 30
    x, y = rng.normal(size=(10, dim)), rng.normal(size=(12, dim))  # rank 9 and 11 of 30
    value = frechet_of(x, y)
    assert np.isfinite(value)
    assert value > 0
    # Against low-rank roots: tr (S1 S2)^1/2 is the nuclear norm of A1^T A2 for S = A A^T.
    a1 = (x - x.mean(0)).T / 3.0
    a2 = (y - y.mean(0)).T / np.sqrt(11.0)
    cross = np.linalg.svd(a1.T @ a2, compute_uv=False).sum()
    want = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(a1**2) + np.sum(a2**2) - 2 * cross
    assert value == pytest.approx(want, abs=1e-5)
    assert frechet_of(x, x) < 1e-5
    # A point mass: only means and the other covariance's trace are left.
    zero = np.zeros((dim, dim))
    assert frechet_distance(np.zeros(dim), zero, np.ones(dim), zero) == pytest.approx(dim)
    c = _random_cov(rng, dim)
    got = frechet_distance(np.zeros(dim), zero, np.zeros(dim), c)
    assert got == pytest.approx(np.trace(c))


def test_moments_are_unbiased_and_stream_in_any_batches():
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(101, 6)) + 1e4).astype(np.float32)
    mean, cov = moments(x)
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)
    for size in (1, 7, 50, 101):
        state = Moments.empty(6)
        for start in range(0, len(x), size):
            state = state.update(x[start : start + size])
        assert state.count == 101
        np.testing.assert_allclose(state.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(state.covariance, cov, rtol=1e-9)


def test_merging_parts_equals_the_whole():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(40, 4)) * 5 + 100
    left, right = Moments.empty(4).update(x[:13]), Moments.empty(4).update(x[13:])
    np.testing.assert_allclose(left.merge(right).covariance, moments(x)[1], rtol=1e-10)
    assert Moments.empty(4).merge(left).count == 13


def test_a_large_mean_does_not_cost_the_covariance():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(200, 3))
    np.testing.assert_allclose(moments(x + 1e7)[1], moments(x)[1], rtol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: moments(np.ones((1, 3))), "at least 2"),
        (lambda: moments(np.ones(3)), r"\[N, D\]"),
        (lambda: moments(np.array([[1.0], [np.nan], [2.0]])), "vector 1 .* not finite"),
        (lambda: Moments.empty(2).update(np.ones((4, 3))), r"\[B, 2\]"),
        (
            lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)),
            "2 and 3 features",
        ),
        (
            lambda: frechet_distance(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2)),
            "first Gaussian",
        ),
        (
            lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), -np.eye(2)),
            "second covariance has the eigenvalue -1",
        ),
        (
            lambda: frechet_distance(
                np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros(2), np.eye(2)
            ),
            "not symmetric",
        ),
        (
            lambda: frechet_distance(np.zeros(2), np.eye(2), np.array([0, np.inf]), np.eye(2)),
            "not finite",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
