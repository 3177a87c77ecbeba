"""Intervals and equal counts: against closed forms, brute force, and sets drawn anew."""

import numpy as np
import pytest
from scored import frechet_of

from ddistill.evaluation.metrics.frechet import frechet_distance
from ddistill.evaluation.metrics.frechet_estimates import Target, frechet_estimates
from ddistill.evaluation.metrics.neighbour_estimates import RealBalls, neighbour_estimates
from ddistill.evaluation.metrics.precision_recall import precision_recall
from ddistill.evaluation.metrics.resampling import (
    Resampling,
    draw_subsets,
    interval,
    mean_interval,
    share_interval,
    subset,
)

DIM = 12
SCALES = np.linspace(0.3, 1.5, DIM)
LEAN = Resampling(subsets=20, splits=4)


def _gaussian(rng, count, shift=0.0, scale=1.0):
    return scale * SCALES * rng.standard_normal((count, DIM)) + shift


def _by_class(rng, labels):
    """Features that lie far apart by class and hardly vary within."""
    centres = 4 * np.random.default_rng(9).standard_normal((5, DIM))
    return centres[labels] + 0.2 * rng.standard_normal((len(labels), DIM))


@pytest.fixture(scope="module")
def target():
    return Target.of(np.zeros(DIM), np.diag(SCALES**2))


# ------------------------------------------------------------------------------- Frechet distances


def test_the_plain_distance_is_the_plain_distance(target):
    rng = np.random.default_rng(0)
    x, y = _gaussian(rng, 50), _gaussian(rng, 40, shift=0.3)
    own = Target.of(x.mean(0), np.cov(x, rowvar=False))
    found = frechet_estimates(own, y.astype(np.float32), LEAN)
    assert found["fd"].value == pytest.approx(frechet_of(x, y), rel=1e-5)
    assert own.distance(y.mean(0), np.cov(y, rowvar=False)) == pytest.approx(frechet_of(x, y))


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.2, 1.1), (0.5, 0.7)])
def test_extrapolation_finds_the_true_distance_and_the_interval_covers_it(target, shift, scale):
    true = frechet_distance(
        np.full(DIM, shift), np.diag((scale * SCALES) ** 2), target.mean, target.cov
    )
    rng = np.random.default_rng(1)
    found = [frechet_estimates(target, _gaussian(rng, 150, shift, scale), LEAN) for _ in range(80)]
    values = np.array([f["fd_infinity"].value for f in found])
    plain = np.array([f["fd"].value for f in found])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - true) < 3 * error + 0.02
    assert plain.mean() - true > 0.08  # what 150 samples add
    assert values.std() < 1.3 * plain.std()
    inside = [f["fd_infinity"].low <= true <= f["fd_infinity"].high for f in found]
    assert 0.9 <= np.mean(inside) <= 1.0
    # Not by being wide: at most half again what sets drawn anew vary by, but close to 0.
    width = np.mean([f["fd_infinity"].high - f["fd_infinity"].low for f in found]) / 3.92
    assert width < (1.3 if true > 0.2 else 2.0) * values.std()


def test_unequal_numbers_of_samples_compare_after_extrapolation(target):
    rng = np.random.default_rng(2)
    few, many = (
        [frechet_estimates(target, _gaussian(rng, count), LEAN) for _ in range(30)]
        for count in (90, 360)
    )
    gap = {
        name: np.mean([f[name].value for f in few]) - np.mean([f[name].value for f in many])
        for name in ("fd", "fd_infinity")
    }
    assert gap["fd"] > 0.2
    assert abs(gap["fd_infinity"]) < 0.04


def test_sets_with_fixed_classes_are_halved_class_by_class():
    rng = np.random.default_rng(3)
    labels = np.arange(100) % 5
    everything = _by_class(rng, np.arange(20_000) % 5)
    target = Target.of(everything.mean(0), np.cov(everything, rowvar=False))
    sets = [_by_class(rng, labels) for _ in range(20)]
    aware = [frechet_estimates(target, x, LEAN, labels) for x in sets]
    blind = [frechet_estimates(target, x, LEAN) for x in sets]
    values = np.array([f["fd_infinity"].value for f in aware])
    assert abs(values.mean()) < 0.05
    assert np.mean([f["fd_infinity"].value for f in blind]) < -1.0
    widths = [f["fd"].high - f["fd_infinity"].low for f in aware]
    assert np.mean(widths) < 0.2 * np.mean([f["fd"].high - f["fd_infinity"].low for f in blind])


def test_no_interval_or_extrapolation_where_none_is_wanted(target):
    x = _gaussian(np.random.default_rng(0), 30)
    none = frechet_estimates(target, x, Resampling(0, 0))
    assert set(none) == {"fd"}
    assert none["fd"].low is None
    assert set(frechet_estimates(target, x[:3], LEAN)) == {"fd"}
    with pytest.raises(ValueError, match="not finite"):
        frechet_estimates(target, np.full((5, DIM), np.nan), LEAN)


def test_fewer_samples_than_features_and_copies_give_finite_intervals(target):
    x = _gaussian(np.random.default_rng(0), 6)
    for samples in (x, np.repeat(x[:1], 8, axis=0)):
        for found in frechet_estimates(target, samples, LEAN).values():
            assert np.isfinite([found.value, found.low, found.high]).all()


# ----------------------------------------------------------------------------------- neighbourhoods


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(4)
    return rng.standard_normal((60, 3)), rng.standard_normal((80, 3)) * 1.2


def test_all_samples_give_the_scores_of_all(sets):
    real, fake = sets
    for samples in (fake, np.concatenate([fake, fake])):  # with copies, whose radii are 0
        want = precision_recall(real, samples, 2, 4)
        found = neighbour_estimates(RealBalls.of(real, 2, 4), samples, None, LEAN)
        assert {name: score.value for name, score in found.items()} == pytest.approx(
            want, rel=1e-12
        )


@pytest.mark.parametrize("count", [7, 40, 70])
def test_scores_at_a_count_are_means_over_subsets(sets, count):
    real, fake = sets
    drawn = draw_subsets(len(fake), count, 4, LEAN)
    masks = drawn.masks[drawn.spread :]
    assert (masks.sum(axis=1) == count).all()
    want = [precision_recall(real, fake[mask]) for mask in masks]
    found = neighbour_estimates(RealBalls.of(real), fake, count, LEAN)
    for name in ("recall", "coverage"):
        assert found[name].value == pytest.approx(np.mean([w[name] for w in want]), rel=1e-12)
    whole = precision_recall(real, fake)
    for name in ("precision", "density"):  # do not depend on the number of samples
        assert found[name].value == pytest.approx(whole[name], rel=1e-12)


def test_intervals_are_as_wide_as_other_samples_vary():
    rng = np.random.default_rng(5)
    balls = RealBalls.of(rng.standard_normal((120, 3)))
    found = [
        neighbour_estimates(balls, 0.7 * rng.standard_normal((160, 3)), 60, LEAN) for _ in range(60)
    ]
    for name in ("precision", "recall", "density", "coverage"):
        values = np.array([f[name].value for f in found])
        middle = values.mean()
        inside = [f[name].low <= middle <= f[name].high for f in found]
        assert 0.85 <= np.mean(inside) <= 1.0, name
        width = np.mean([f[name].high - f[name].low for f in found]) / 3.92
        assert 0.8 * values.std() < width < 1.7 * values.std(), name


def test_balls_and_counts_that_cannot_be_are_refused(sets):
    real, fake = sets
    balls = RealBalls.of(real)
    with pytest.raises(ValueError, match="count=3 must be above k=3"):
        neighbour_estimates(balls, fake, 3)
    with pytest.raises(ValueError, match=r"count=81 must be in 1 \.\. 80"):
        neighbour_estimates(balls, fake, 81)
    with pytest.raises(ValueError, match="Real features have 3 entries, fake 2"):
        neighbour_estimates(balls, fake[:, :2])
    few = neighbour_estimates(balls, fake[:5], None, LEAN)
    assert few["recall"].low is None  # halves of 5 have no third neighbour
    assert few["precision"].low is not None
    none = neighbour_estimates(balls, fake, 20, Resampling(0, 0))
    assert {score.low for score in none.values()} == {None}


# ------------------------------------------------------------------------------------------ subsets


def test_subsets_hold_their_share_of_every_class():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    order = np.random.default_rng(0).permutation(100)
    drawn = draw_subsets(100, 30, 1, LEAN, labels[order])
    for mask in drawn.masks:
        counts = np.bincount(labels[order][mask], minlength=3)
        assert np.abs(counts - [15, 9, 6]).max() <= 1
    assert len(np.unique(drawn.masks, axis=0)) == len(
        np.unique(drawn.masks[: drawn.spread], axis=0)
    )
    assert len(np.unique(drawn.masks, axis=0)) == 20
    rng = np.random.default_rng(0)
    seen = np.zeros(100)
    for _ in range(400):
        seen[subset(rng, 100, 30, labels)] += 1
    assert np.abs(seen / 400 - 0.3).max() < 0.12  # nobody is always or never drawn


def test_the_spread_of_a_mean_over_subsets_is_its_standard_error():
    values = np.random.default_rng(0).standard_normal(200)
    for count in (50, 100, 150, 200):
        drawn = draw_subsets(200, count, 1, Resampling(subsets=400))
        found = drawn.estimate(drawn.masks @ values / drawn.masks.sum(axis=1))
        assert found.high - found.low == pytest.approx(3.92 * values.std() / 200**0.5, rel=0.12)
        assert found.value == pytest.approx(values.mean(), abs=0.02)
    # A mean over few small subsets of many samples varies with the subsets more than with these.
    means = []
    for seed in range(150):
        drawn = draw_subsets(4000, 20, 1, Resampling(subsets=40, seed=seed))
        wide = np.random.default_rng(1).standard_normal(4000)
        means.append(drawn.estimate(drawn.masks @ wide / 20))
    inside = [m.low <= wide.mean() <= m.high for m in means]
    assert 0.88 <= np.mean(inside) <= 0.99
    same = draw_subsets(200, 50, 1, LEAN), draw_subsets(200, 50, 1, LEAN)
    np.testing.assert_array_equal(same[0].masks, same[1].masks)


def test_shares_have_intervals_at_their_ends():
    none, every = share_interval(np.zeros(50, bool)), share_interval(np.ones(50, bool))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(3.8416 / 53.8416, rel=1e-3)  # z^2 / (n + z^2)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - none.high)
    half = share_interval(np.arange(100) < 50)
    assert half.high - half.value == pytest.approx(half.value - half.low)
    assert mean_interval(np.array([2.0])).low is None
    assert mean_interval(np.array([0.0, 4.0])).low == 0.0  # of values of 0 or more


def test_intervals_are_cut_to_their_range():
    cut = interval(0.98, 0.1, 0.0, 1.0)
    assert (cut.high, cut.low) == (1.0, pytest.approx(0.784, abs=1e-4))
    below = interval(-0.1, 0.01, lowest=0.0)  # an extrapolated distance may be below 0
    assert below.low == below.value == -0.1


@pytest.mark.parametrize("wrong", [{"subsets": 1}, {"subsets": -1}, {"splits": -1}, {"seed": -1}])
def test_numbers_of_subsets_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=-?1 must be"):
        Resampling(**wrong)


def test_many_features_take_one_split():
    assert Resampling().for_features(64) == Resampling()
    assert Resampling().for_features(2048).splits == 1
    assert Resampling(splits=0).for_features(2048).splits == 0
