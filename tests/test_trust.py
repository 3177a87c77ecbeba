"""Warnings where scores mean little."""

from types import SimpleNamespace

import numpy as np
import pytest

from ddistill.evaluation.metrics.features import reference
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.trust import warnings_of


def _scorer(accuracy=0.95, floor=0.1, counts=(360, 1437), classes=10):
    features = np.random.default_rng(0).standard_normal((50, 8))  # a variance of about 8
    return SimpleNamespace(
        accuracy=accuracy,
        fixed=False,
        real=reference(features, np.arange(50) % classes, classes),
        floor={"fd_infinity": Estimate(floor)},
        floor_count=counts[0],
        real_count=counts[1],
    )


def _teacher(distance=0.3, samples=1024):
    images = np.zeros((samples, 1, 1, 1))
    return SimpleNamespace(
        scores={"fd_infinity": Estimate(distance)}, samples=SimpleNamespace(images=images)
    )


def test_a_sound_run_has_no_warning():
    assert warnings_of(_scorer(), _teacher()) == []


@pytest.mark.parametrize(
    ("accuracy", "classes", "warns"),
    [(0.79, 10, True), (0.8, 10, False), (0.6, 50, False), (0.49, 50, True)],
)
def test_a_weak_classifier(accuracy, classes, warns):
    found = warnings_of(_scorer(accuracy, classes=classes), _teacher())
    assert bool(found) == warns
    if warns:
        assert f"accuracy of {accuracy:.1%} on the test images, below" in found[0]


@pytest.mark.parametrize(
    ("counts", "samples", "name"),
    [
        ((360, 1437), 15, "15 samples"),
        ((15, 1437), 1024, "15 test images"),
        ((360, 15), 64, "15 training images"),
    ],
)
def test_fewer_images_than_features_can_bear(counts, samples, name):
    (found,) = warnings_of(_scorer(counts=counts), _teacher(samples=samples))
    assert found.startswith(f"{name} are fewer than 2 for each of the 8 features")
    assert warnings_of(_scorer(counts=(16, 16)), _teacher(samples=16)) == []


def test_a_teacher_far_from_the_floor():
    scorer = _scorer()
    bound = 0.1 * scorer.real.variance
    assert warnings_of(scorer, _teacher(0.1 + 0.99 * bound)) == []
    (found,) = warnings_of(scorer, _teacher(0.1 + 1.01 * bound))
    assert found.startswith("The teacher is far from the data: its FD\N{INFINITY} is")
    assert f"({bound:.3g})" in found
