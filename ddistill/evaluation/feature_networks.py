"""The network whose features score samples: a classifier of the run, or a fixed network.

A fixed network was trained on other images, so that its features do not depend on how many images
the run has. Class metrics are always those of the run's classifier.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ddistill import data
from ddistill.data import Dataset
from ddistill.errors import CheckpointError, ConfigError, DataError
from ddistill.evaluation.metrics.features import params_hash
from ddistill.interop.efficientnet_lite import INSTALL, installed, load_lite0, weight_file
from ddistill.interop.tensors import file_digest
from ddistill.networks.efficientnet_lite import LEAST_SIDE, NAME, EfficientNetLite0
from ddistill.networks.weights import Weights
from ddistill.objectives.classification import Classifier
from ddistill.runtime.compilation import forward_options
from ddistill.settings import Settings
from ddistill.typing import Images

AUTO, CLASSIFIER = "auto", "classifier"
# Data sources with pictures of things, which the fixed network was trained on.
_PICTURES = ("folder", "tfds")
# The largest number of neighbours k in `metrics.features.score`.
NEIGHBOURS = 5
# Images per batch. On CPU the activations of a few images stay in its caches.
_BATCH, _BATCH_ON_CPU = 128, 8

Outputs = tuple[jax.Array | None, jax.Array]


@dataclass(frozen=True)
class FeatureChoice:
    """The features that score the samples of a run.

    Attributes:
      kind: `CLASSIFIER`, the name of a fixed network, or "" for no scores.
      file: the weights of the fixed network.
      note: a line for the user; "" for none.
    """

    kind: str
    file: Path | None = None
    note: str = ""

    @property
    def identity(self) -> str:
        """The kind, with the SHA-256 of the file if there is one."""
        return f"{self.kind}:{file_digest(self.file)}" if self.file else self.kind


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network and, if the run has one, a classifier.

    Attributes:
      apply: jitted, images -> (class logits or None, features).
      name: name of the feature network, for protocols.
      digest: hash of its weights.
      batch: images per batch.
      fixed: whether it was not trained by this run.
    """

    apply: Callable[[np.ndarray], Outputs]
    name: str
    digest: str
    batch: int
    fixed: bool


def choose_features(settings: Settings, dataset: Dataset) -> FeatureChoice:
    """Resolves `evaluation.features`.

    "auto" is EfficientNet-Lite0 for folders and TFDS sets of images of 32 pixels and more if its
    weights are installed, and otherwise the classifier, if the run has one.

    Args:
      settings: the settings of the run.
      dataset: its training images.

    Raises:
      ConfigError: the features are not there.
    """
    e = settings.evaluation
    if e.features == AUTO:
        return _automatic(settings, dataset)
    if e.features == CLASSIFIER and not e.classifier:
        raise ConfigError(
            "config.evaluation.features='classifier', but config.evaluation.classifier is ''. Name "
            f"a stage that trains a classifier, or set features to '{NAME}'."
        )
    if e.features in ("", CLASSIFIER):
        return FeatureChoice(e.features)
    try:
        return FeatureChoice(NAME, weight_file("" if e.features == NAME else e.features))
    except ConfigError as error:
        raise ConfigError(
            f"config.evaluation.features={e.features!r}: {error} Allowed are '{AUTO}', "
            f"'{CLASSIFIER}', '{NAME}', the path of a weight file, and '' for no scores."
        ) from None


def _automatic(settings: Settings, dataset: Dataset) -> FeatureChoice:
    trained = FeatureChoice(CLASSIFIER if settings.evaluation.classifier else "")
    suits = settings.data.get("name") in _PICTURES and min(dataset.image_shape[:2]) >= LEAST_SIDE
    if not suits:
        return trained
    file = installed()
    if file is None:
        scored = "the run's classifier scores samples" if trained.kind else "samples get no scores"
        return FeatureChoice(
            trained.kind,
            note=f"{scored}; {INSTALL} adds EfficientNet-Lite0, whose features do not depend on "
            "how many images there are",
        )
    if trained.kind or not (why := too_few(settings, dataset)):
        return FeatureChoice(NAME, file)
    return FeatureChoice("", note=f"samples get no scores: {why}")


def too_few(settings: Settings, dataset: Dataset) -> str:
    """Why there are too few real images to score samples against; "" if there are enough.

    Args:
      settings: the settings of the run.
      dataset: the training images.
    """
    try:
        test = data.count(settings.data, "test")
    except DataError as error:
        return f"Scores need test images: {error}"
    for split, count in (("training", len(dataset)), ("test", test)):
        if count <= NEIGHBOURS:
            return (
                f"Scores need more than {NEIGHBOURS} {split} images, because precision and recall "
                f"use {NEIGHBOURS} neighbours, and the data set has {count}: use more data, or "
                "another data.test_fraction if the data set has no test split."
            )
    return ""


# Weights are an argument: those inside a program take long to compile.
@jax.jit
def _classified(classifier: Classifier, images: Images) -> tuple[jax.Array, jax.Array]:
    return classifier(images)


def open_features(
    choice: FeatureChoice, classifier: Classifier | None, name: str, batch: int
) -> FeatureNetwork:
    """Reads and compiles the chosen network.

    Args:
      choice: the features; its kind is not "".
      classifier: the run's classifier; None if it has none.
      name: the name of the classifier's network.
      batch: images per batch, at most.

    Raises:
      ConfigError: the weight file is missing, damaged, or another network's.
    """
    if choice.file is None:
        assert classifier is not None, "checks.check_evaluation names the classifier"
        apply = functools.partial(_classified, jax.device_put(classifier))
        return FeatureNetwork(apply, name, params_hash(classifier.weights), batch, False)
    try:
        weights = load_lite0(choice.file)
    except CheckpointError as error:
        raise ConfigError(f"config.evaluation.features: {error}") from None
    fixed = Classifier(Weights(weights.params), EfficientNetLite0())

    def both(fixed: Classifier, classifier: Classifier | None, images: jax.Array) -> Outputs:
        logits = None if classifier is None else classifier(images)[0]
        return logits, fixed(images)[1]

    compiled = jax.jit(both, compiler_options=forward_options())
    placed = jax.device_put((fixed, classifier))
    most = _BATCH_ON_CPU if jax.default_backend() == "cpu" else _BATCH

    def apply_both(images: np.ndarray) -> Outputs:
        return compiled(*placed, images)

    return FeatureNetwork(apply_both, weights.name, weights.sha256[:8], min(batch, most), True)
