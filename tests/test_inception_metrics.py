"""Inception score, KID, precision and recall, FID: torch-fidelity's numbers of equal features."""

import numpy as np
import pytest
from inception_cases import fidelity
from scored import frechet_of

from ddistill.errors import ConfigError
from ddistill.evaluation.metrics.inception_metrics import (
    MetricSettings,
    inception_score,
    kernel_distance,
)
from ddistill.evaluation.metrics.precision_recall import precision_recall

# torch-fidelity 0.4.0 on the features and logits of `clouds()`.
STORED = {
    "frechet_inception_distance": 2.792263,
    "inception_score_mean": 2.226741,
    "inception_score_std": 0.1977233,
    "kernel_inception_distance_mean": 0.8584925,
    "kernel_inception_distance_std": 0.2744193,
    "precision": 0.6222222,
    "recall": 0.8636364,
}


def clouds():
    """Features [90, 24] of samples, [110, 24] of real images, and logits [90, 12]."""
    rng = np.random.RandomState(0)
    mix = rng.standard_normal((24, 24)) / 5
    fake = np.abs(rng.standard_normal((90, 24)) @ mix) * 1.2 + 0.1
    real = np.abs(rng.standard_normal((110, 24)) @ mix)
    logits = 2 * rng.standard_normal((90, 12)) + rng.standard_normal(12)
    return (x.astype(np.float32) for x in (fake, real, logits))


def ours():
    fake, real, logits = clouds()
    names = ("inception_score", "kernel_inception_distance")
    pairs = inception_score(logits, 10), kernel_distance(fake, real, 20, 50)
    found = {f"{n}_{k}": v for n, pair in zip(names, pairs) for k, v in zip(("mean", "std"), pair)}
    both = precision_recall(real, fake, 3)
    found |= {name: both[name] for name in ("precision", "recall")}
    return found | {"frechet_inception_distance": frechet_of(fake, real)}


def torch_fidelitys():
    fid, isc = fidelity("metric_fid"), fidelity("metric_isc")
    kid, prc = fidelity("metric_kid"), fidelity("metric_prc")
    import torch

    fake, real, logits = (torch.tensor(x) for x in clouds())
    statistics = [fid.fid_features_to_statistics(x) for x in (fake, real)]
    sizes = {"kid_subsets": 20, "kid_subset_size": 50, "verbose": False}
    found = isc.isc_features_to_metric(logits)
    found |= kid.kid_features_to_metric(fake, real, **sizes)
    found |= prc.prc_features_to_metric(fake, real, verbose=False)
    return found | fid.fid_statistics_to_metric(*statistics, verbose=False)


def test_numbers_are_those_that_torch_fidelity_gave():
    found = ours()
    assert found.keys() == STORED.keys()
    for name, value in STORED.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parity
def test_numbers_are_torch_fidelitys():
    theirs, found = torch_fidelitys(), ours()
    for name, value in found.items():
        assert value == pytest.approx(theirs[name], rel=1e-4), name


def test_inception_score_in_closed_form():
    # Every image of a class of its own: p(y) is uniform over K classes and the score is K.
    sure = 50.0 * np.eye(6)[np.arange(60) % 6]
    assert inception_score(sure, splits=1)[0] == pytest.approx(6, rel=1e-6)
    alike = np.tile([1.0, 2.0, 3.0], (40, 1))
    assert inception_score(alike, splits=4) == pytest.approx((1.0, 0.0))


def test_inception_score_depends_on_nothing_but_the_multiset_in_one_split():
    *_, logits = clouds()
    mean, spread = inception_score(logits, splits=1)
    assert inception_score(logits[::-1] + 5.0, splits=1)[0] == pytest.approx(mean, rel=1e-6)
    assert spread == 0


def test_kid_of_whole_sets_by_hand():
    fake, real, _ = clouds()
    x, y = fake[:9].astype(np.float64), real[:9].astype(np.float64)

    def kernel(a, b):
        return (float(a @ b) / 24 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(9) for j in range(9) if i != j)
    between = sum(kernel(a, b) for a in x for b in y)
    want = within / 72 - 2 * between / 81
    assert kernel_distance(x, y, subsets=3, size=9) == pytest.approx((want, 0.0), abs=1e-12)


def test_kid_of_equal_distributions_is_about_0():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 400, 8))
    mean, spread = kernel_distance(x, y, 30, 200)
    assert abs(mean) < spread
    assert kernel_distance(x, y + 0.5, 30, 200)[0] > 5 * spread


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: inception_score(np.zeros((3, 5))), r"--is_splits=10 is above .*\(3\)"),
        (
            lambda: kernel_distance(np.zeros((7, 2)), np.zeros((9, 2)), 2, 8),
            "--kid_subset_size=8 is above .* 7 samples and 9 real images. Use a size of at most 7",
        ),
        (lambda: MetricSettings(is_splits=0), "--is_splits=0 must be 1 or more"),
        (lambda: MetricSettings(kid_subset_size=1), "--kid_subset_size=1 must be 2 or more"),
    ],
)
def test_what_cannot_be_computed(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
