"""Texts shared out among students: fitted cells, their sizes, and who predicts what."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from ddistill.conditions import TextCondition
from ddistill.denoiser import Denoiser
from ddistill.errors import ConfigError
from ddistill.partitions import (
    EmbeddingPartition,
    ProductPartition,
    fitting,
    text_part,
    timestep_partition,
    with_cells,
)
from ddistill.partitions.fitting import Captions, check_cuts, fit_cells, shares
from ddistill.schedules import cosine
from ddistill.students import RoutedDenoiser, in_groups, stack


def clouds(count, width=6, seed=0):
    """Points around five centres."""
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(5, width))
    return (centres[rng.integers(5, size=count)] + rng.normal(size=(count, width))).astype("f4")


def captions(points, **more):
    return Captions(len(points), lambda rows: points[rows], **more)


# ----------------------------------------------------------------------------------------- fitting


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 400), st.sampled_from([1, 2, 4, 8]), st.sampled_from(fitting.BY_CUTS))
def test_cuts_at_medians_have_cells_of_one_size(more, students, split):
    points = clouds(students + more, seed=more)
    cells, owners = fit_cells(split, students, captions(points))
    sizes = np.bincount(owners, minlength=students)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(cells(points), owners)


def test_the_second_cut_of_quadrants_is_at_the_median_of_each_half():
    points = clouds(1000)
    # Of correlated axes, on which a common second cut would leave quadrants unequal.
    points[:, 1] += points[:, 0]
    cells, owners = fit_cells("quadrants", 4, captions(points))
    first = points[:, 0] > np.median(points[:, 0])
    np.testing.assert_array_equal(owners // 2, first)
    for half in (0, 1):
        own = points[first == half, 1]
        np.testing.assert_allclose(cells.thresholds[1][half], np.median(own), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(cells.axes), np.eye(2, 6))


def test_principal_cuts_are_across_the_largest_variance():
    points = clouds(500)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    spread = np.array([9.0, 4.0, 1.0, 1.0, 1.0, 1.0])
    points = ((points - points.mean(0)) / points.std(0) * spread @ turn).astype("f4")
    cells, _ = fit_cells("principal", 4, captions(points))
    inner = np.abs(np.asarray(cells.axes) @ turn.T)
    assert inner[0, 0] > 0.95
    assert inner[1, 1] > 0.9


@pytest.mark.parametrize("students", [3, 4])
def test_clusters_are_the_cheapest_assignment_to_their_centres(students):
    points = clouds(61)
    cells, owners = fit_cells("clusters", students, captions(points))
    sizes = np.bincount(owners)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(cells(points), owners)
    costs = np.square(points[:, None] - np.asarray(cells.centres)).sum(-1)
    seats = np.repeat(np.arange(students), sizes)
    rows, columns = linear_sum_assignment(costs[:, seats])
    best = costs[rows, seats[columns]].sum()
    assert costs[np.arange(61), owners].sum() == pytest.approx(best, rel=1e-5)


def test_clusters_that_have_not_settled_are_of_one_size(monkeypatch):
    """The last round moves the centres, for which the biases are then found again."""
    monkeypatch.setattr(fitting, "_ROUNDS", 2)
    _, owners = fit_cells("clusters", 4, captions(clouds(2000, width=24)))
    assert np.bincount(owners).tolist() == [500] * 4


def test_listed_groups_have_cells_of_their_sizes():
    points, rng = clouds(300), np.random.default_rng(0)
    groups = np.digitize(points[:, 0] + 0.1 * rng.normal(size=300), [-1.0, 2.0])
    cells, owners = fit_cells("listed", 3, captions(points, groups=groups))
    np.testing.assert_array_equal(np.bincount(owners), np.bincount(groups))
    assert np.mean(owners == groups) > 0.5
    np.testing.assert_allclose(cells.centres[0], points[groups == 0].mean(0), rtol=1e-4)


def test_many_captions_are_fitted_on_a_sample_and_read_in_pieces(monkeypatch):
    monkeypatch.setattr(fitting, "SAMPLE", 1000)
    monkeypatch.setattr(fitting, "CHUNK", 256)
    points, asked = clouds(5000), []

    def embed(rows):
        asked.append(len(rows))
        return points[rows]

    cells, owners = fit_cells("clusters", 4, Captions(5000, embed))
    assert max(asked) <= 256
    assert sum(asked) == 6000
    assert np.abs(shares(owners, 4) - 0.25).max() < 0.04
    np.testing.assert_array_equal(cells(points), owners)
    again, _ = fit_cells("clusters", 4, Captions(5000, embed))
    np.testing.assert_array_equal(again.biases, cells.biases)


def test_what_cannot_be_fitted_is_said():
    with pytest.raises(ConfigError, match="students.count=6 is no power of two"):
        check_cuts(6)
    with pytest.raises(ConfigError, match="there are 3 captions to partition; allowed: 1 to 3"):
        fit_cells("clusters", 4, captions(clouds(3)))
    with pytest.raises(ConfigError, match="no caption belongs to student 1 of 2"):
        fit_cells("quadrants", 2, captions(np.ones((8, 3), "f4")))
    with pytest.raises(ConfigError, match="is not finite"):
        fit_cells("quadrants", 2, captions(np.full((8, 3), np.nan, "f4")))
    with pytest.raises(ConfigError, match="text_split='quadrant' is not known"):
        fit_cells("quadrant", 2, captions(clouds(8)))


# ----------------------------------------------------------------------------------------- routing

LEVELS = cosine(8)


def condition(points):
    points = jnp.asarray(points)
    return TextCondition(points[:, None], points)


def constant(params, x, time, cond, *, train, rngs, taps):
    return jnp.full_like(x, params)


def students(count, partition):
    params = jnp.arange(count, dtype=jnp.float32)
    return RoutedDenoiser(Denoiser(stack(list(params)), constant, "x0"), partition)


def partitions(points):
    cells, owners = fit_cells("quadrants", 4, captions(points))
    texts = EmbeddingPartition(4, cells=cells)
    return texts, ProductPartition(timestep_partition(LEVELS, 2), texts), owners


def test_a_batch_is_predicted_by_the_owner_of_each_text_and_level():
    points = clouds(32)
    texts, both, owners = partitions(points)
    z, cond = jnp.zeros((32, 1, 1, 1)), condition(points)
    found = students(4, texts)(z, LEVELS.at(8), cond).x0[:, 0, 0, 0]
    np.testing.assert_array_equal(found, owners)
    for level, times in ((2, 0), (7, 1)):
        found = students(8, both)(z, LEVELS.at(level), cond).x0[:, 0, 0, 0]
        np.testing.assert_array_equal(found, 4 * times + owners)


def test_images_are_sampled_group_by_group_and_come_back_in_order():
    points = clouds(32)
    texts, both, owners = partitions(points)
    calls = []

    def sample(denoiser, rows):
        calls.append(len(rows))
        return denoiser(jnp.zeros((len(rows), 1, 1, 1)), LEVELS.at(8), None).x0

    found = in_groups(students(4, texts), condition(points), 32, sample)[:, 0, 0, 0]
    np.testing.assert_array_equal(found, owners)
    assert calls == [8, 8, 8, 8]
    found = in_groups(students(8, both), condition(points), 32, sample)[:, 0, 0, 0]
    np.testing.assert_array_equal(found, 4 + owners)


def test_texts_of_another_kind_have_an_owner_too():
    texts, both, _ = partitions(clouds(32))
    other = condition(100.0 * clouds(50, seed=9))
    assert set(np.asarray(both.group(other))) <= {0, 1, 2, 3}
    assert text_part(both) is texts
    assert text_part(both.times) is None
    bare = dataclasses.replace(both, conditions=EmbeddingPartition(4))
    for call in (lambda: bare.group(other), lambda: texts.group(np.arange(3))):
        with pytest.raises(ValueError, match=r"is not fitted|no text \(cond\) was given"):
            call()
    again = with_cells(bare, texts.cells)
    np.testing.assert_array_equal(again.group(other), both.group(other))
