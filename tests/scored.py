"""Sets of images and a tiny network that stands for Inception."""

import numpy as np
from inception_cases import pictures
from PIL import Image

from ddistill.evaluate import Options, evaluate
from ddistill.evaluation.metrics.detector import GENUINE, Detector
from ddistill.evaluation.metrics.frechet import frechet_distance, moments
from ddistill.evaluation.metrics.inception_metrics import MetricSettings
from ddistill.runtime.console import Reporter
from ddistill.runtime.interrupt import StopRequest


def frechet_of(x: np.ndarray, y: np.ndarray) -> float:
    """The Frechet distance between two sets of features."""
    return frechet_distance(*moments(x), *moments(y))


SMALL = MetricSettings(is_splits=2, kid_subsets=5, kid_subset_size=10)
DIM = 6


class Notes(Reporter):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)

    def begin(self, title, total, done=0):
        """No line: `said` is what is left to read."""

    def advance(self, done, text):
        """As `begin`."""


def project(pixels):
    """Features [B, 6] and logits [B, 4]: sums of pixels with fixed weights."""
    flat = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).reshape(len(pixels), -1) / 255.0
    weights = np.random.RandomState(0).standard_normal((flat.shape[1], DIM + 4))
    made = (flat @ weights / np.sqrt(flat.shape[1])).astype(np.float32)
    return made[:, :DIM], 5 * made[:, DIM:]


def tiny_detector(name=GENUINE, feature="2048", apply=project):
    return Detector(name, "6726825d" * 8, feature, DIM, "none", apply, batch=8)


def save_folder(folder, pixels):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    return folder


def make_sets(folder):
    """A folder of 37 samples and an npz file of 45 real images, and both as arrays."""
    fake, real = pictures(37, 8, seed=1), pictures(45, 8, seed=2)
    save_folder(folder / "fake", fake)
    np.savez(folder / "real.npz", arr_0=real)
    return folder, fake, real


def options(folder, reference="real.npz", path="fake", **changes):
    reference = str(folder / reference) if reference and "." in reference else reference
    return Options(str(folder / path), reference, **{"settings": SMALL, **changes})


def run(chosen, detector=None, stop=None, command=""):
    notes = Notes()
    made = evaluate(
        chosen, detector or tiny_detector(), notes, StopRequest() if stop is None else stop, command
    )
    return made, notes.said
