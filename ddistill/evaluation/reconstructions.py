"""Scores of autoencoders: how well they rebuild the test images, and a picture of it.

Written to WORKDIR/reconstructions.json and, by stage, WORKDIR/reconstructions/STAGE.png.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ddistill import data
from ddistill.data import Dataset, to_unit
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.figures.image_grids import Grid, ImageRow, grid_image, write_png
from ddistill.objectives.autoencoder import AUTOENCODER, BoundAutoencoder, psnr
from ddistill.objectives.classification import Classifier
from ddistill.planning.plan import StagePlan
from ddistill.runtime.files import write_json

FILE, FOLDER = "reconstructions.json", "reconstructions"
# Images in the picture.
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
    """

    images: int
    psnr: float
    read: float | None = None
    images_read: float | None = None

    def __str__(self) -> str:
        text = f"PSNR {self.psnr:.2f} dB on {self.images} test images"
        if self.read is None or self.images_read is None:
            return text
        return (
            f"{text}; the classifier reads {self.read:.1%} of the reconstructions right, and "
            f"{self.images_read:.1%} of the images"
        )


def score_reconstructions(evaluation: Evaluation) -> dict[str, Reconstructions]:
    """Scores the autoencoders of a run, says and writes the results; none without autoencoders.

    Students of a stage of many have the names STAGE/0, STAGE/1 and so on.

    Args:
      evaluation: the run; its stages are complete.
    """
    plans = [p for p in evaluation.plans if p.objective.trains == AUTOENCODER]
    if not plans:
        return {}
    settings, networks = evaluation.settings, evaluation.networks
    test = data.load(settings.data, "test")
    judges = [p for p in evaluation.plans if p.name == settings.evaluation.classifier]
    classifier = networks(judges[0]) if judges else None
    found: dict[str, Reconstructions] = {}
    for plan in plans:
        for name, student in _students(plan):
            network = networks(plan, student)
            size = settings.evaluation.batch_size
            found[name] = score_autoencoder(network, classifier, test, size)
            evaluation.reporter.say(f"{name}: {found[name]}")
            _draw(evaluation, name, network, test)
    content = {name: {**vars(own)} for name, own in found.items()}
    write_json(evaluation.workdir / FILE, content)
    return found


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

    @jax.jit
    def of_batch(images: jax.Array, labels: jax.Array) -> Mapping[str, jax.Array]:
        given = to_unit(images)
        rebuilt = jnp.clip(network(given), -1.0, 1.0)
        values = {"psnr": psnr(rebuilt, given)}
        if classifier is not None:
            for name, shown in (("read", rebuilt), ("images_read", given)):
                values[name] = jnp.argmax(classifier(shown)[0], axis=-1) == labels
        return values

    sums: dict[str, float] = {}
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        full = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])
        values = of_batch(jnp.asarray(test.take(full)), jnp.asarray(test.labels[full]))
        for name, value in values.items():
            total = float(np.sum(np.asarray(value, np.float64)[: len(rows)]))
            sums[name] = sums.get(name, 0.0) + total
    return Reconstructions(count, **{name: total / count for name, total in sums.items()})


def _students(plan: StagePlan) -> list[tuple[str, int | None]]:
    """Names and indices of a stage's students; those that diverged are left out."""
    if not plan.stacked:
        return [(plan.name, None)]
    diverged = plan.diverged_students()
    return [(f"{plan.name}/{k}", k) for k in range(len(plan.students)) if k not in diverged]


def _draw(evaluation: Evaluation, name: str, network: BoundAutoencoder, test: Dataset) -> None:
    """Writes a picture of test images above their reconstructions; a failure is reported."""
    path = evaluation.workdir / FOLDER / f"{name.replace('/', '_')}.png"
    try:
        shown = min(_SHOWN, len(test))
        images = np.asarray(to_unit(jnp.asarray(test.take(np.arange(shown) * len(test) // shown))))
        rebuilt = np.clip(np.asarray(network(jnp.asarray(images))), -1, 1)
        rows = [ImageRow("test images", images), ImageRow("reconstructions", rebuilt)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, grid_image([Grid(f"{name}: reconstructions", rows)]))
    except (OSError, ValueError) as error:
        evaluation.reporter.say(f"note: {path.name} was not written: {error}")
