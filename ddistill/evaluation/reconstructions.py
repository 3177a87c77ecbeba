"""Scores of autoencoders: how well they rebuild the test images, and a picture of it.

Written to reconstructions.json and reconstructions.png in the run's folder.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from ddistill import data
from ddistill.data import Dataset, to_unit
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.figures.image_grids import Grid, ImageRow, grid_image, write_png
from ddistill.evaluation.metrics.features import Sampling, extract, score
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.scorer import Scorer
from ddistill.objectives.autoencoder import AUTOENCODER, BoundAutoencoder, psnr
from ddistill.objectives.classification import Classifier
from ddistill.runtime.files import read_object, write_json

FILE, PICTURE = "reconstructions.json", "reconstructions.png"
# Images of each autoencoder in the picture.
_SHOWN = 16


@dataclass(frozen=True)
class Reconstructions:
    """Scores of one autoencoder on test images; latents are the means of their Gaussians.

    Attributes:
      images: number of test images.
      psnr: mean over images, in dB, of reconstructions clipped to [-1, 1].
      read: share of the reconstructions that the classifier gives the label of the image, in
        [0, 1]; None without a classifier.
      images_read: the same share of the images themselves.
      fd_infinity: Frechet distance of the reconstructions to the training images, extrapolated to
        infinitely many, in the features that score samples; None without them. The floor of the
        samples of a network on these latents.
    """

    images: int
    psnr: float
    read: float | None = None
    images_read: float | None = None
    fd_infinity: float | None = None

    def __str__(self) -> str:
        text = f"PSNR {self.psnr:.2f} dB on {self.images} test images"
        if self.fd_infinity is not None:
            text += f", {METRICS['fd_infinity'].label} {self.fd_infinity:.3g}"
        if self.read is None or self.images_read is None:
            return text
        return (
            f"{text}; the classifier reads {self.read:.1%} of the reconstructions right, and "
            f"{self.images_read:.1%} of the images"
        )


def score_reconstructions(
    evaluation: Evaluation, scorer: Scorer | None = None
) -> dict[str, Reconstructions]:
    """Scores the autoencoders of a run, says and writes the results; none without autoencoders.

    Students of a stage of many have the names STAGE/0, STAGE/1 and so on.

    Args:
      evaluation: the run; its stages are complete.
      scorer: the features of samples; None to leave out their distances.
    """
    autoencoders = _autoencoders(evaluation)
    if not autoencoders:
        return {}
    settings, networks = evaluation.settings, evaluation.networks
    test = data.load(settings.data, "test")
    judges = [p for p in evaluation.plans if p.name == settings.evaluation.classifier]
    classifier = networks(judges[0]) if judges else None
    found: dict[str, Reconstructions] = {}
    for name, network in autoencoders.items():
        own = score_autoencoder(network, classifier, test, settings.evaluation.batch_size)
        found[name] = (
            own if scorer is None else replace(own, fd_infinity=_distance(network, scorer))
        )
        evaluation.reporter.say(f"{name}: {found[name]}")
    write_json(evaluation.workdir / FILE, {name: {**vars(own)} for name, own in found.items()})
    try:
        grids = [_grid(name, own, test, str(found[name])) for name, own in autoencoders.items()]
        write_png(evaluation.workdir / PICTURE, grid_image(grids))
    except (OSError, ValueError) as error:
        evaluation.reporter.say(f"note: {PICTURE} was not written: {error}")
    return found


def reconstruction_grids(evaluation: Evaluation) -> list[Grid]:
    """Test images above their reconstructions, one grid for each autoencoder of a run."""
    autoencoders = _autoencoders(evaluation)
    if not autoencoders:
        return []
    test = data.load(evaluation.settings.data, "test")
    scores = stored_scores(evaluation)
    return [_grid(name, own, test, str(scores[name])) for name, own in autoencoders.items()]


def stored_scores(evaluation: Evaluation) -> dict[str, Reconstructions]:
    """By autoencoder what `score_reconstructions` has written; empty where it wrote nothing."""
    path = evaluation.workdir / FILE
    own = any(plan.objective.trains == AUTOENCODER for plan in evaluation.plans)
    found = read_object(path) if own and path.is_file() else {}
    return {name: Reconstructions(**scores) for name, scores in found.items()}


def score_autoencoder(
    network: BoundAutoencoder, classifier: Classifier | None, test: Dataset, size: int
) -> Reconstructions:
    """Scores an autoencoder.

    Args:
      network: the autoencoder.
      classifier: of the classes of the data, or None.
      test: the test images.
      size: images per batch.
    """
    count = len(test)
    size = min(size, count)
    placed = jax.device_put((network, classifier))
    sums: dict[str, float] = {}
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        full = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])
        batch = (jnp.asarray(test.take(full)), jnp.asarray(test.labels[full]))
        values = _of_batch(*placed, *batch)
        for name, value in values.items():
            total = float(np.sum(np.asarray(value, np.float64)[: len(rows)]))
            sums[name] = sums.get(name, 0.0) + total
    return Reconstructions(count, **{name: total / count for name, total in sums.items()})


@jax.jit
def _of_batch(
    network: BoundAutoencoder, classifier: Classifier | None, images: jax.Array, labels: jax.Array
) -> Mapping[str, jax.Array]:
    """Scores of the images of a batch, `[B]` each."""
    given = to_unit(images)
    rebuilt = jnp.clip(network(given), -1.0, 1.0)
    values = {"psnr": psnr(rebuilt, given)}
    if classifier is not None:
        for name, shown in (("read", rebuilt), ("images_read", given)):
            values[name] = jnp.argmax(classifier(shown)[0], axis=-1) == labels
    return values


@jax.jit
def _rebuilt(network: BoundAutoencoder, images: jax.Array) -> jax.Array:
    return network(images)


def _distance(network: BoundAutoencoder, scorer: Scorer) -> float | None:
    """The distance of the reconstructions of the scorer's test images; None for too few."""
    apply = functools.partial(_rebuilt, jax.device_put(network))
    rebuilt = extract(apply, scorer.test, scorer.batch)
    _, features = extract(scorer.apply, np.clip(rebuilt, -1, 1), scorer.batch, quantise=True)
    strata = np.asarray(scorer.test.labels) if scorer.floor_strata else None
    sampling = Sampling(scorer.count, strata, scorer.resampling)
    found = score(scorer.real, features, sampling=sampling)
    return found["fd_infinity"].value if "fd_infinity" in found else None


def _autoencoders(evaluation: Evaluation) -> dict[str, BoundAutoencoder]:
    """The trained autoencoders of a run by name; students that diverged are left out."""
    found = {}
    for plan in evaluation.plans:
        if plan.objective.trains != AUTOENCODER:
            continue
        diverged = plan.diverged_students()
        for k in range(len(plan.students)):
            name = f"{plan.name}/{k}" if plan.stacked else plan.name
            if k not in diverged:
                found[name] = evaluation.networks(plan, k if plan.stacked else None)
    return found


def _grid(name: str, network: BoundAutoencoder, test: Dataset, caption: str) -> Grid:
    shown = min(_SHOWN, len(test))
    images = to_unit(jnp.asarray(test.take(np.arange(shown) * len(test) // shown)))
    rebuilt = np.clip(np.asarray(network(images)), -1, 1)
    rows = [ImageRow("test images", np.asarray(images)), ImageRow("reconstructions", rebuilt)]
    return Grid(f"Reconstructions of '{name}'", rows, caption)
