"""The scorer of an evaluation: what its features are called, and which images they belong to."""

from types import SimpleNamespace

import numpy as np
import pytest

from ddistill.data import Dataset
from ddistill.evaluation import scorer as module
from ddistill.evaluation.feature_networks import FeatureChoice, FeatureNetwork
from ddistill.evaluation.report.details import meanings_note
from ddistill.evaluation.trust import _weak_classifier
from ddistill.objectives import make_objective
from ddistill.settings import EvaluationSettings

REAL, MOST = 30, 10


def dataset(count: int, seed: int) -> Dataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), np.uint8)
    return Dataset("d", pixels, np.zeros(count, np.int32), 1, ("only",))


@pytest.fixture
def made(monkeypatch):
    """`made(fixed)`: the scorer of a run whose classifier has learnt rotations."""
    plan = SimpleNamespace(
        name="classifier",
        settings=SimpleNamespace(network={"name": "resnet"}, objective={"name": "rotation"}),
        objective=make_objective({"name": "rotation"}),
        imported=None,
    )
    settings = EvaluationSettings(samples=12, batch_size=5, classifier="classifier")
    monkeypatch.setattr(module, "MOST_REAL", MOST)
    monkeypatch.setattr(module, "measured_accuracy", lambda *_: 0.3)

    def make(fixed: bool) -> module.Scorer:
        def opened(choice, classifier, name, batch):
            def apply(images):
                flat = images.reshape(len(images), -1)
                return flat[:, :4], flat

            return FeatureNetwork(apply, "fixed" if fixed else name, "0" * 8, batch, fixed)

        monkeypatch.setattr(module, "open_features", opened)
        evaluation = SimpleNamespace(
            settings=SimpleNamespace(evaluation=settings),
            plans=[plan],
            dataset=dataset(REAL, 0),
            networks=lambda plan: None,
        )
        return module.make_scorer(evaluation, FeatureChoice("any"), dataset(12, 1))

    return make


@pytest.mark.parametrize("fixed", [False, True])
def test_a_classifier_of_rotations_says_nothing_about_classes(made, fixed):
    scorer = made(fixed)
    assert scorer.name == ("fixed" if fixed else "resnet_rotation")
    assert not scorer.tells_classes
    assert "class_tv" not in scorer.floor
    note = meanings_note(scorer)
    assert ("which this run did not train" in note) == fixed
    assert ("the classifier of this run" in note) != fixed
    assert bool(_weak_classifier(scorer)) != fixed


def test_nearest_images_are_named_by_their_place_in_the_data(made):
    """A fixed network sees some of the training images alone."""
    scorer = made(True)
    assert scorer.real_count == MOST
    images = dataset(REAL, 0)
    seen = np.arange(MOST) * REAL // MOST
    _, features = scorer.apply(images.take(seen).astype(np.float32) / 127.5 - 1)
    found = scorer.nearest(features)
    np.testing.assert_array_equal(found.index, seen)
    np.testing.assert_allclose(found.distances, 0, atol=1e-5)
