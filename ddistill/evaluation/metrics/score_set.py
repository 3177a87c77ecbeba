"""Scores of one set of samples against one reference, with their names and protocol."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ddistill.errors import ConfigError, nearest
from ddistill.evaluation.metrics.detector import GENUINE, INCEPTION, Detector
from ddistill.evaluation.metrics.feature_store import FeatureStore
from ddistill.evaluation.metrics.frechet import frechet_distance
from ddistill.evaluation.metrics.frechet_estimates import Target, frechet_estimates
from ddistill.evaluation.metrics.image_sets import ImageSet
from ddistill.evaluation.metrics.inception_metrics import (
    SET_METRICS,
    MetricSettings,
    inception_score,
    kernel_distance,
)
from ddistill.evaluation.metrics.neighbour_estimates import RealBalls, neighbour_estimates
from ddistill.evaluation.metrics.reference_sets import ReferenceSet
from ddistill.evaluation.metrics.resampling import Estimate

# Number of samples in papers; fewer samples give a larger distance.
FULL_COUNT = 50_000


@dataclass(frozen=True, eq=False)
class SampleSet:
    """The samples to score.

    Attributes:
      images: the samples.
      features: their features.
      label: name in the output; "" for the name of `images`.
      origin: parts of a protocol that say how the samples were made.
      classes: number of classes through which the labels of the samples cycle; 0 for independent
        samples.
      full: number of samples that a FID is defined with by a protocol; 0 for `FULL_COUNT`.
    """

    images: ImageSet
    features: FeatureStore
    label: str = ""
    origin: str = ""
    classes: int = 0
    full: int = 0


@dataclass(frozen=True)
class SetScores:
    """The scores of one set of samples.

    Attributes:
      key: key of a sampler run, or name of a folder or file.
      label: name in the output.
      samples: number of samples.
      proxy: whether there are fewer samples than papers use.
      scores: value by name.
      intervals: name -> 95 % interval (low, high) over draws of the samples, for distance,
        precision, recall, density and coverage.
      protocol: everything that the values depend on.
      notes: which metrics were left out, with the reason.
    """

    key: str
    label: str
    samples: int
    proxy: bool
    scores: dict[str, float]
    protocol: str
    notes: tuple[str, ...] = ()
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The scores as text: a heading, then one line per score."""
        kind = f", proxy (papers: {FULL_COUNT} samples)" if self.proxy else ""
        lines = [f"{self.label}: {self.samples} samples{kind}"]
        for name, value in self.scores.items():
            low, high = self.intervals.get(name, (value, value))
            ends = f"  [{low:.6g}, {high:.6g}]" if name in self.intervals else ""
            lines.append(f"  {name:<22} {value:.6g}{ends}")
        return [*lines, *(f"  {note}" for note in self.notes), f"  {self.protocol}"]


def chosen_metrics(text: str) -> tuple[str, ...]:
    """Splits a list with commas into metrics; empty text gives no metrics.

    Raises:
      ConfigError: a metric is unknown.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in SET_METRICS:
            raise ConfigError(
                f"--metrics: {name!r} is not known.{nearest(name, SET_METRICS)} Allowed: "
                f"{', '.join(SET_METRICS)}, with commas between."
            )
    return names


def score_set(
    samples: SampleSet,
    reference: ReferenceSet,
    detector: Detector,
    settings: MetricSettings,
    metrics: Sequence[str] = (),
) -> SetScores:
    """Scores samples against a reference.

    Args:
      samples: the samples and their features.
      reference: the real images.
      detector: the network that computed the features.
      settings: the settings of the metrics.
      metrics: some of `SET_METRICS`; empty for all that samples and reference allow.

    Raises:
      ConfigError: the reference or the number of samples does not allow one of `metrics`.
    """
    images, store, classes = samples.images, samples.features, samples.classes
    reasons = _impossible(store.count, reference, detector, settings)
    for name in metrics:
        if name in reasons:
            raise ConfigError(f"--metrics={name}: {reasons[name]}.")
    wanted = [m for m in SET_METRICS if m in (metrics or SET_METRICS) and m not in reasons]
    notes = tuple(f"no {m}: {reasons[m]}" for m in SET_METRICS if m in reasons and not metrics)
    strata = np.arange(store.count) % classes if classes else None
    scores = _values(store, reference, settings, wanted, strata)
    proxy = detector.network == INCEPTION and store.count < (samples.full or FULL_COUNT)
    names = _names(detector, proxy)
    return SetScores(
        key=images.name,
        label=samples.label or images.name,
        samples=store.count,
        proxy=proxy,
        scores={names(name): score.value for name, score in scores.items()},
        intervals={
            names(name): (score.low, score.high)
            for name, score in scores.items()
            if score.low is not None and score.high is not None
        },
        protocol=_protocol(images, reference, detector, settings, wanted, samples.origin)
        + (" strata=yes" if classes else ""),
        notes=notes,
    )


def _impossible(
    count: int, reference: ReferenceSet, detector: Detector, s: MetricSettings
) -> dict[str, str]:
    """The metrics that samples and reference do not allow, with the reason."""
    found: dict[str, str] = {}
    if count < 2:
        found["fid"] = "a covariance needs at least 2 samples"
    if detector.network != INCEPTION:
        found["is"] = "the inception score is defined with the Inception network"
    elif not detector.logits:
        found["is"] = "the logits were not computed"
    elif count < s.is_splits:
        found["is"] = f"{count} samples do not make {s.is_splits} splits"
    if reference.features is None:
        alone = f"{reference.name} has statistics and no single features; take images as reference"
        return found | {"kid": alone, "prc": alone}
    least = min(count, len(reference.features))
    if least < s.kid_subset_size:
        found["kid"] = f"subsets of {s.kid_subset_size} need as many images, and there are {least}"
    if least <= max(s.neighbours, s.density_neighbours):
        found["prc"] = f"{least} images have fewer neighbours than precision and recall need"
    return found


def _values(
    store: FeatureStore,
    reference: ReferenceSet,
    s: MetricSettings,
    wanted: Sequence[str],
    strata: np.ndarray | None,
) -> dict[str, Estimate]:
    scores: dict[str, Estimate] = {}
    if "fid" in wanted:
        scores |= _distance(store, reference, s, strata)
    if "is" in wanted:
        scores |= _pair("is", inception_score(store.logits(), s.is_splits, s.seed))
    if {"kid", "prc"} & set(wanted):
        assert reference.features is not None
        real, fake = reference.features, store.features()
        if "kid" in wanted:
            sizes = (s.kid_subsets, s.kid_subset_size, s.seed)
            scores |= _pair("kid", kernel_distance(fake, real, *sizes))
        if "prc" in wanted:
            balls = RealBalls.of(real, s.neighbours, s.density_neighbours)
            scores |= neighbour_estimates(balls, fake, None, s.resampling, strata)
    return scores


def _distance(
    store: FeatureStore, reference: ReferenceSet, s: MetricSettings, strata: np.ndarray | None
) -> dict[str, Estimate]:
    """The distance of these samples and the distance extrapolated to infinitely many samples.

    Without resampling the moments are enough, and the features are not held in memory.
    """
    if not s.subsets and not s.splits:
        own = store.moments()
        value = frechet_distance(reference.mean, reference.cov, own.mean, own.covariance)
        return {"fid": Estimate(value)}
    target = Target.of(reference.mean, reference.cov)
    found = frechet_estimates(target, store.features(), s.resampling, strata)
    names = {"fd": "fid", "fd_infinity": "fid_infinity"}
    return {names[name]: score for name, score in found.items()}


def _pair(name: str, found: tuple[float, float]) -> dict[str, Estimate]:
    """Mean and standard deviation over parts, as two scores."""
    return {name: Estimate(found[0]), f"{name}_std": Estimate(found[1])}


def _names(detector: Detector, proxy: bool) -> Callable[[str], str]:
    """Returns score -> name; "fid" needs the features of FID and `FULL_COUNT` samples."""
    word = detector.name.replace("-", "_")
    if detector.network != INCEPTION:
        words = {"fid": f"fd_{word}", "kid": f"kd_{word}"}
        return lambda score: re.sub("^(fid|kid)", lambda found: words[found[0]], score)
    distance = ("fid_proxy" if proxy else "fid") if detector.is_fid else ""
    distance = distance or f"fd_{word}_{detector.feature}"
    prefix = "" if detector.name == GENUINE else "unverified_"

    def name(score: str) -> str:
        if score in ("fid", "fid_infinity"):
            return score.replace("fid", distance)
        return f"{prefix}{score}"

    return name


def _protocol(
    images: ImageSet,
    reference: ReferenceSet,
    detector: Detector,
    s: MetricSettings,
    wanted: Sequence[str],
    origin: str,
) -> str:
    settings = {
        "is": f"is=splits:{s.is_splits}",
        "kid": f"kid=poly3:{s.kid_subsets}x{s.kid_subset_size}",
        "prc": f"prc=k:{s.neighbours},{s.density_neighbours}",
    }
    single = reference.features if {"kid", "prc"} & set(wanted) else None
    parts = [
        f"features={detector.text}",
        f"reference={_word(reference.text)}",
        f"reference_size={reference.size}/{reference.resize}",
        f"samples={_word(images.name)}:{len(images)}@{images.digest[:8]}",
        f"size={images.size}/{images.resize}",
        f"resize={detector.resize}",
        "uint8=yes",
        *(settings[name] for name in wanted if name in settings),
        *([f"reference_features={len(single)}"] if single is not None else []),
        *([f"subsets={s.subsets}"] if {"fid", "prc"} & set(wanted) else []),
        *([f"splits={s.splits}"] if "fid" in wanted else []),
        f"metric_seed={s.seed}",
    ]
    return " ".join([*parts, *([origin] if origin else [])])


def _word(text: str) -> str:
    """A name without the separators of a protocol, which names of folders may contain."""
    return "_".join(text.replace("=", "_").split())
