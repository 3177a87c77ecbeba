"""Distances to the teacher's images, paths between noises, nearest training images."""

import numpy as np
import pytest

from ddistill.evaluation.interpolation import path_ends
from ddistill.evaluation.metrics import copying
from ddistill.evaluation.metrics.copying import nearest, share_closer
from ddistill.evaluation.metrics.paths import LARGEST, LENGTH, path_scores, slerp
from ddistill.evaluation.metrics.resampling import mean_interval, ratio_of_means
from ddistill.evaluation.metrics.teacher_distance import (
    PSNR,
    RAW,
    RELATIVE,
    feature_scores,
    pixel_scores,
)
from ddistill.evaluation.report.teacher_parts import amplification


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_a_bootstrap_interval_of_a_mean_is_that_of_its_standard_error():
    values = _normal(500) + 3
    found, known = ratio_of_means(values), mean_interval(values)
    assert found.value == pytest.approx(values.mean())
    width = known.high - known.low
    assert found.low == pytest.approx(known.low, abs=0.1 * width)
    assert found.high == pytest.approx(known.high, abs=0.1 * width)
    assert ratio_of_means(values) == found  # the draws have a seed
    assert ratio_of_means(values[:1]).low is None


def test_a_ratio_of_means_is_exact_where_both_are_proportional():
    values = np.abs(_normal(50))
    found = ratio_of_means(3 * values, values)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))
    # And no mean of ratios: one small divisor does not decide.
    assert ratio_of_means(np.array([1.0, 1]), np.array([1e-9, 1])).value == pytest.approx(2)
    half = ratio_of_means(np.array([0.0, 1]), np.array([0.0, 1]))
    assert (half.value, half.low, half.high) == (1, 1, 1)  # draws without a divisor have no ratio


def test_equal_images_have_distance_0_and_unrelated_ones_1():
    teacher = _normal(400, 8)
    same = feature_scores(teacher, teacher)
    assert (same[RAW].value, same[RELATIVE].value) == (0, 0)
    other = feature_scores(_normal(400, 8, seed=1), teacher)
    assert other[RELATIVE].low < 1 < other[RELATIVE].high
    assert other[RAW].value == pytest.approx(4 * 0.97, rel=0.05)  # sqrt(2 * 8), nearly
    moved = feature_scores(teacher + np.array([3.0, 4, 0, 0, 0, 0, 0, 0]), teacher)
    assert moved[RAW].value == pytest.approx(5)


def test_with_classes_unrelated_images_are_of_one_class():
    classes = 5
    teacher = 100.0 * np.eye(classes)[np.arange(12) % classes] + _normal(12, classes)
    gaps = np.linalg.norm(teacher[:7] - teacher[5:], axis=1)  # images 0 and 5, ... 6 and 11
    gaps = [*gaps, *(np.linalg.norm(teacher[i] - teacher[i % 5]) for i in range(7, 12))]
    found = feature_scores(teacher + 1, teacher, classes)
    assert found[RELATIVE].value == pytest.approx(np.sqrt(5) / np.mean(gaps), rel=1e-6)
    # Image 4 of six with labels 0 to 4, 0 is alone in its class; 0 and 5 are the only pair.
    few = feature_scores(teacher[:6] + 1, teacher[:6], classes)
    pair = np.linalg.norm(teacher[0] - teacher[5])
    assert few[RELATIVE].value == pytest.approx(np.sqrt(5) / pair, rel=1e-6)
    assert RELATIVE not in feature_scores(teacher[:5], teacher[:5], classes)
    assert RELATIVE not in feature_scores(np.ones((4, 2)), np.zeros((4, 2)))


def test_pixels_outside_of_the_range_are_clipped_before_they_are_compared():
    zeros = np.zeros((3, 2, 2, 1))
    assert pixel_scores(zeros + 0.2, zeros)[PSNR].value == pytest.approx(20)
    assert pixel_scores(zeros + 5, zeros + 1)[PSNR].value == 100


def test_slerp_keeps_norm_and_turns_at_one_pace():
    a, b = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    points = slerp(a, b, np.linspace(0, 1, 5))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-6)
    angles = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    np.testing.assert_allclose(angles, [0, 22.5, 45, 67.5, 90], atol=1e-4)
    noises = _normal(2, 8, 8, 1)
    ends = slerp(*noises, np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, noises, atol=1e-6)
    np.testing.assert_allclose(slerp(a, a, np.array([0.5]))[0], a)
    np.testing.assert_allclose(slerp(a, 0 * a, np.array([0.5]))[0], a / 2)


def test_a_straight_path_has_length_1_and_a_jump_is_one_large_step():
    line = np.linspace(0, 1, 10)[None, :, None] * np.array([3.0, 4.0])
    straight = path_scores(np.concatenate([line, 2 * line]))
    assert straight[LENGTH].value == pytest.approx(1)
    assert straight[LARGEST].value == pytest.approx(1 / 9)
    jump = path_scores((np.arange(10) >= 4)[None, :, None] * np.ones((1, 1, 3)))
    assert (jump[LENGTH].value, jump[LARGEST].value) == pytest.approx((1, 1))
    there_and_back = np.array([0.0, 2, 1])[None, :, None]
    found = path_scores(there_and_back)
    assert (found[LENGTH].value, found[LARGEST].value) == pytest.approx((3, 2))
    assert path_scores(np.ones((2, 4, 3))) == {}


@pytest.mark.parametrize(("samples", "classes", "count"), [(16, 1, 8), (16, 10, 8), (64, 10, 100)])
def test_paths_join_noises_of_one_class_and_share_none(samples, classes, count):
    ends = path_ends(samples, classes, count)
    assert 0 < len(ends) <= count
    assert len(set(ends.ravel())) == ends.size
    assert ends.max() < samples
    np.testing.assert_array_equal(ends[:, 0] % classes, ends[:, 1] % classes)
    assert len({a % classes for a, _ in ends}) == min(len(ends), classes)


def test_no_path_without_two_noises_of_a_class():
    assert path_ends(16, 16, 8).shape == (0, 2)
    assert path_ends(16, 1, 0).shape == (0, 2)


def test_the_nearest_is_found_in_whatever_block_it_is(monkeypatch):
    monkeypatch.setattr(copying, "_BLOCK", 7)
    points, training = _normal(9, 4), _normal(40, 4, seed=1)
    training[33] = points[2]
    asked = []

    def take(rows):
        asked.extend(rows)
        return training[rows]

    distances, index = nearest(points, len(training), take)
    table = np.linalg.norm(points[:, None] - training[None], axis=-1)
    np.testing.assert_array_equal(index, table.argmin(axis=1))
    np.testing.assert_allclose(distances, table.min(axis=1), atol=1e-9)
    assert (distances[2], index[2]) == (0, 33)
    assert asked == list(range(40))


def test_copies_are_closer_than_unseen_images_and_new_images_are_not():
    unseen = np.array([1.0, 2, 3, 4])
    assert share_closer(np.zeros(5), unseen).value == 1
    assert share_closer(np.full(5, 9.0), unseen).value == 0
    # 2.5 is closer than two of four, 2 than two and ties with one.
    assert share_closer(np.array([2.5, 2.0]), unseen).value == pytest.approx((0.5 + 0.625) / 2)


def test_of_two_sets_of_one_distribution_19_of_20_intervals_hold_one_half():
    drawn = [share_closer(_normal(60, seed=i), _normal(80, seed=i + 1000)) for i in range(60)]
    inside = sum(found.low < 0.5 < found.high for found in drawn)
    assert 52 <= inside < 60  # of 57 on average, with a standard deviation of 1.7


def test_differences_are_amplified_as_far_as_they_stay_in_range():
    assert amplification([np.full((1, 4, 4, 1), 2.0)]) == 1
    assert amplification([np.full((1, 4, 4, 1), -0.5)]) == 4
    assert amplification([np.full((1, 4, 4, 1), 0.3), np.full((1, 4, 4, 1), 0.1)]) == 4
    assert amplification([np.zeros((1, 4, 4, 1))]) == 16
