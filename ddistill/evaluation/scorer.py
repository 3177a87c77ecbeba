"""The scorer of an evaluation: the features of real images, and the scores of the test images."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from ddistill.data import Dataset
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.feature_networks import FeatureChoice, open_features
from ddistill.evaluation.metrics.copying import nearest
from ddistill.evaluation.metrics.features import (
    Reference,
    Sampling,
    extract,
    fixed_strata,
    reference,
    score,
)
from ddistill.evaluation.metrics.resampling import USUAL, Estimate, Resampling
from ddistill.evaluation.records.names import LITE0_DISTANCES
from ddistill.objectives.classification import Classification, Classifier
from ddistill.planning.plan import StagePlan

# Samples of which the nearest training image is searched, because the time grows with their number.
SEARCHED = 512
# Training images behind the features of a fixed network, at most: they are computed anew in every
# evaluation, and a CPU takes a quarter of an hour for these.
MOST_REAL = 50_000


@dataclass(frozen=True)
class Nearest:
    """The nearest training images of some images, in features.

    Attributes:
      distances: `[N]`.
      index: `[N]` indices of training images.
    """

    distances: Float[np.ndarray, " N"]
    index: Int[np.ndarray, " N"]


@dataclass(frozen=True)
class Scorer:
    """The feature network and the features of the real images.

    Attributes:
      apply: jitted, images -> (class logits or None, features).
      name: name of the feature network.
      fixed: whether the feature network was not trained by this run.
      data: name of the data set.
      digest: hash of the weights of the feature network.
      real: features of the training images.
      real_index: `[real_count]` indices of the training images behind `real`.
      floor: scores of the test images against the training images; only scores that do not depend
        on the number of images, or that are computed at `count` images.
      floor_count: number of test images.
      floor_strata: whether each class has a fixed number of test images.
      count: number of images for recall, coverage and class shares, of samples and test images.
      resampling: number of subsets and seed.
      accuracy: accuracy of the classifier on the test images; None without a classifier.
      classes: `[M]` class that the classifier reads off each test image; None without one.
      others: accuracy of the other classifiers of the run, by stage.
      batch: images per batch.
      test: the test images.
      unseen: nearest training images of `SEARCHED` test images, spread over the set.
      unseen_index: their indices among the test images.
    """

    apply: Callable[[np.ndarray], tuple[jax.Array | None, jax.Array]]
    name: str
    fixed: bool
    data: str
    digest: str
    real: Reference
    real_index: Int[np.ndarray, " R"]
    floor: Mapping[str, Estimate]
    floor_count: int
    floor_strata: bool
    count: int
    resampling: Resampling
    accuracy: float | None
    classes: Int[np.ndarray, " M"] | None
    others: Mapping[str, float]
    batch: int
    test: Dataset
    unseen: Nearest
    unseen_index: Int[np.ndarray, " M"]

    @property
    def real_count(self) -> int:
        """The number of training images behind `real`."""
        return len(self.real_index)

    @property
    def tells_classes(self) -> bool:
        """Whether a classifier of the run tells the classes of the data."""
        return self.accuracy is not None and self.real.histogram is not None

    def nearest(self, features: Float[np.ndarray, "N D"]) -> Nearest:
        """The training images that are nearest to images with these features."""
        return nearest_training(self.real, self.real_index, features)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some images of a data set, read by index."""

    dataset: Dataset
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Images `[len(indices), H, W, C]`."""
        return self.dataset.take(self.rows[indices])


def make_scorer(evaluation: Evaluation, choice: FeatureChoice, test: Dataset) -> Scorer:
    """Computes the features of the real images, and scores the test images like samples.

    Args:
      evaluation: the run.
      choice: the features, not none.
      test: the test images.
    """
    settings, plans = evaluation.settings.evaluation, evaluation.plans
    dataset, networks = evaluation.dataset, evaluation.networks
    plan = next((p for p in plans if p.name == settings.classifier), None)
    network = open_features(
        choice,
        networks(plan) if plan else None,
        _name_of(plan) if plan else "",
        settings.batch_size,
    )
    apply, batch = network.apply, network.batch
    count = min(len(dataset), MOST_REAL) if network.fixed else len(dataset)
    images = _Rows(dataset, np.arange(count) * len(dataset) // count)
    _, train_features = extract(apply, images, batch, quantise=True)
    logits, features = extract(apply, test, batch, quantise=True)
    # A classifier of something else than the data's classes says nothing about these.
    apart = plan is not None and bool(plan.objective.trains.classes)
    labels = None if apart else np.asarray(dataset.labels)[images.rows]
    real = reference(train_features, labels, dataset.num_classes)
    shares = real.histogram if real.histogram is not None else np.zeros(0)
    strata = fixed_strata(np.asarray(test.labels), shares)
    count = min(settings.samples, len(test), real.max_neighbours)
    resampling = USUAL.for_features(train_features.shape[1])
    floor = score(real, features, logits, sampling=Sampling(count, strata, resampling))
    if len(test) != settings.samples:
        del floor["fd"]  # depends on the number of images, which is not that of the samples
    # A test set may be sorted by class, so that its first images are of few classes.
    few = min(SEARCHED, len(test))
    unseen_index = np.arange(few) * len(test) // few
    others = {
        p.name: measured_accuracy(p, networks(p), test, batch)
        for p in plans
        if p.objective.trains.kind == "classifier" and p is not plan and p.imported is None
    }
    return Scorer(
        apply=apply,
        name=network.name,
        fixed=network.fixed,
        data=dataset.name,
        digest=network.digest,
        real=real,
        real_index=images.rows,
        floor=named_distances(floor, network.fixed),
        floor_count=len(test),
        floor_strata=strata is not None,
        count=count,
        resampling=resampling,
        accuracy=None
        if plan is None or logits is None
        else measured_accuracy(plan, networks(plan), test, batch),
        classes=None if logits is None else logits.argmax(axis=1),
        others=others,
        batch=batch,
        test=test,
        unseen=nearest_training(real, images.rows, features[unseen_index]),
        unseen_index=unseen_index,
    )


def nearest_training(
    real: Reference, index: Int[np.ndarray, " R"], features: Float[np.ndarray, "N D"]
) -> Nearest:
    """The training images that are nearest to images with these features.

    Args:
      real: features of some training images.
      index: indices of these images.
      features: of the images for which they are searched.
    """
    distances, rows = nearest(features, len(real.features), lambda rows: real.features[rows])
    return Nearest(distances, index[rows])


def _name_of(plan: StagePlan) -> str:
    """Name of a feature network: the network, and what it has learned unless the classes."""
    own = f"_{plan.settings.objective['name']}" if plan.objective.trains.classes else ""
    return f"{plan.settings.network['name']}{own}"


def measured_accuracy(plan: StagePlan, classifier: Classifier, test: Dataset, batch: int) -> float:
    """Share of the test images, in [0, 1], for which the right class has the greatest logit.

    It is the mean over the views of `Classification.views`.

    Args:
      plan: the stage of the classifier.
      classifier: its network.
      test: the test images.
      batch: images per batch.
    """
    objective = plan.objective
    assert isinstance(objective, Classification)
    shares, classifier = [], jax.device_put(classifier)
    for view in objective.views:
        apply = functools.partial(_logits_of_view, view.of, classifier)
        logits = extract(apply, test, batch)
        right = np.asarray(test.labels) if view.label is None else view.label
        shares.append(float((logits.argmax(axis=1) == right).mean()))
    return float(np.mean(shares))


@functools.partial(jax.jit, static_argnums=0)
def _logits_of_view(
    view: Callable[[jax.Array], jax.Array], classifier: Classifier, images: jax.Array
) -> jax.Array:
    return classifier(view(images))[0]


def named_distances(scores: Mapping[str, Estimate], fixed: bool) -> dict[str, Estimate]:
    """The scores, with the distances named after the fixed network."""
    return {LITE0_DISTANCES.get(k, k) if fixed else k: score for k, score in scores.items()}
