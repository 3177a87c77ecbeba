"""Precision, recall, density, coverage on cases small enough to check by hand; histograms."""

import numpy as np
import pytest

from ddistill.evaluation.metrics.precision_recall import (
    class_histogram,
    neighbour_radii,
    precision_recall,
    total_variation,
)


def _line(*xs):
    return np.array(xs, np.float64)[:, None]


def test_hand_checked_on_a_line():
    # k = 1. Real 0, 1, 3, 10 has radii 1, 1, 2, 7; fake 2, 4, 30 has radii 2, 2, 26.
    real, fake = _line(0, 1, 3, 10), _line(2, 4, 30)
    got = precision_recall(real, fake, k=1, k_density=1)
    # 2 lies in the balls of 1 and 3; 4 in those of 3 and 10; 30 in none.
    assert got["precision"] == pytest.approx(2 / 3)
    # 0 in [0, 4], 1 in [0, 4], 3 in [0, 4], 10 in [4, 56].
    assert got["recall"] == 1.0
    # Hits: 2 in {1, 3}; 4 in {3, 10}: 4 hits over k * M = 3.
    assert got["density"] == pytest.approx(4 / 3)
    # Balls with a fake: 1, 3, 10.
    assert got["coverage"] == pytest.approx(3 / 4)


def test_k_chooses_the_neighbour():
    points = _line(0, 1, 3, 7)
    np.testing.assert_array_equal(
        neighbour_radii(points, (1, 2, 3)), [[1, 9, 49], [1, 4, 36], [4, 9, 16], [16, 36, 49]]
    )


def test_far_apart_and_dropped_modes():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 3))
    apart = precision_recall(a, a + 1e3)
    assert apart == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}
    two_modes = np.concatenate([a, b + 1e3])
    half = precision_recall(two_modes, a + 1e-6)  # only one of two modes is generated
    assert half["precision"] == 1.0
    assert half["recall"] == pytest.approx(0.5)
    assert half["coverage"] == pytest.approx(0.5)
    noisy = precision_recall(a, two_modes)  # half of the fakes lie in a mode that is not real
    assert noisy["precision"] == pytest.approx(0.5)
    assert noisy["recall"] == 1.0


def test_equal_sets_score_one():
    x = np.random.default_rng(1).normal(size=(60, 4))
    got = precision_recall(x, x)
    assert got["precision"] == got["recall"] == got["coverage"] == 1.0
    # Every ball is closed and holds its centre and its k neighbours: (k + 1) / k on itself.
    assert got["density"] == pytest.approx(6 / 5)


def test_collapsed_generator_has_precision_without_coverage():
    real = np.random.default_rng(2).normal(size=(100, 4))
    fake = np.repeat(real[:1], 100, axis=0)
    got = precision_recall(real, fake)
    assert got["precision"] == 1.0
    assert got["recall"] == pytest.approx(0.01)  # balls of radius 0 hold the one point they copy
    assert got["coverage"] < 0.2


@pytest.mark.parametrize("dim", [3, 300])
def test_duplicates_count_as_neighbours(dim):
    rng = np.random.default_rng(3)
    base = rng.normal(size=(6, dim)) + 50
    real = np.repeat(base, 3, axis=0)  # every point thrice: 2 neighbours at distance 0
    assert not neighbour_radii(real, (2,)).any()
    assert neighbour_radii(real, (3,)).all()
    got = precision_recall(real, base, k=2, k_density=2)
    assert got["precision"] == 1.0
    assert got["coverage"] == 1.0
    moved = precision_recall(real, base + 1e-3, k=2, k_density=2)
    assert moved["precision"] == 0.0
    assert moved["coverage"] == 0.0


@pytest.mark.parametrize("dim", [5, 300])
def test_blocks_do_not_change_the_result(dim):
    rng = np.random.default_rng(4)
    real, fake = rng.normal(size=(37, dim)), rng.normal(size=(53, dim)) * 0.9
    whole = precision_recall(real, fake, block=10_000)
    assert 0 < whole["precision"] <= 1
    for block in (1, 8, 37, 50):
        assert precision_recall(real, fake, block=block) == whole


def test_product_form_agrees_with_the_exact_one():
    rng = np.random.default_rng(5)
    real, fake = rng.normal(size=(50, 200)), rng.normal(size=(60, 200)) * 0.95
    wide = [np.pad(x, ((0, 0), (0, 100))) for x in (real, fake)]  # zeros change no distance
    assert precision_recall(*wide) == precision_recall(real, fake)
    np.testing.assert_allclose(neighbour_radii(wide[0], (3,)), neighbour_radii(real, (3,)))


def test_invariant_under_rotation_shift_and_scale():
    rng = np.random.default_rng(6)
    real, fake = rng.normal(size=(40, 6)), rng.normal(size=(40, 6)) + 0.5
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert precision_recall(real @ q * 7 + 3, fake @ q * 7 + 3) == precision_recall(real, fake)


@pytest.mark.parametrize(
    "real, fake, kwargs, message",
    [
        (np.ones((5, 2)), np.ones((5, 3)), {}, "2 entries, fake 3"),
        (np.ones((3, 2)), np.ones((9, 2)), {}, "k=3.*N=3 real"),
        (np.ones((9, 2)), np.ones((3, 2)), {}, "k=3.*N=3 fake"),
        (np.ones((9, 2)), np.ones((9, 2)), {"k": 0}, "k=0"),
        (np.ones((9, 2)), np.ones((9, 2)), {"block": 0}, "block=0"),
        (np.ones((9, 2)), np.full((9, 2), np.nan), {}, "fake features .* not finite"),
        (np.ones(9), np.ones((9, 2)), {}, "real features"),
    ],
)
def test_errors(real, fake, kwargs, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(real, fake, **kwargs)


def test_class_histogram_of_labels_and_logits():
    labels = np.array([0, 2, 2, 1, 2])
    np.testing.assert_allclose(class_histogram(labels, 4), [0.2, 0.2, 0.6, 0.0])
    logits = np.eye(4)[labels] * 9 - 4
    np.testing.assert_array_equal(class_histogram(logits, 4), class_histogram(labels, 4))


def test_total_variation():
    assert total_variation(np.full(5, 0.2)) == 0
    assert total_variation(np.array([1.0, 0, 0, 0])) == pytest.approx(0.75)
    assert total_variation(np.array([0.5, 0.5, 0]), np.array([0.25, 0.5, 0.25])) == 0.25
    assert total_variation(np.array([1.0, 0]), np.array([0, 1.0])) == 1.0


@pytest.mark.parametrize(
    "values, message",
    [
        (np.array([0, 3]), "0..3"),
        (np.array([-1, 0]), "-1..0"),
        (np.array([], int), "integer labels"),
        (np.array([0.5]), "integer labels"),
        (np.ones((4, 2)), "num_classes=3"),
    ],
)
def test_histogram_errors(values, message):
    with pytest.raises(ValueError, match=message):
        class_histogram(values, 3)
