"""One set of samples against one reference: which scores there are, their names and protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddistill.errors import ConfigError, nearest
from ddistill.evaluation.metrics.detector import GENUINE, Detector
from ddistill.evaluation.metrics.feature_store import FeatureStore
from ddistill.evaluation.metrics.frechet import frechet_distance
from ddistill.evaluation.metrics.frechet_estimates import Target, frechet_estimates
from ddistill.evaluation.metrics.image_sets import ImageSet
from ddistill.evaluation.metrics.inception_metrics import (
    METRICS,
    MetricSettings,
    inception_score,
    kernel_distance,
)
from ddistill.evaluation.metrics.neighbour_estimates import RealBalls, neighbour_estimates
from ddistill.evaluation.metrics.reference_sets import ReferenceSet
from ddistill.evaluation.metrics.resampling import Estimate

# Fewer samples give a larger distance: papers score this many.
FULL_COUNT = 50_000


@dataclass(frozen=True)
class SetScores:
    """The scores of one set of samples.

    Attributes:
      key: of the call of a run, or the name of folder or file.
      label: for people.
      samples: how many were scored.
      proxy: whether these are too few to stand beside papers.
      scores: value by name.
      intervals: name -> 95 % interval (low, high) over other samples, for distance, precision,
        recall, density and coverage.
      protocol: everything that the values depend on.
      notes: which scores were left out, and why.
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
        """For people: a heading and one line a score."""
        kind = f", proxy (papers: {FULL_COUNT} samples)" if self.proxy else ""
        lines = [f"{self.label}: {self.samples} samples{kind}"]
        for name, value in self.scores.items():
            low, high = self.intervals.get(name, (value, value))
            ends = f"  [{low:.6g}, {high:.6g}]" if name in self.intervals else ""
            lines.append(f"  {name:<22} {value:.6g}{ends}")
        return [*lines, *(f"  {note}" for note in self.notes), f"  {self.protocol}"]


def chosen_metrics(text: str) -> tuple[str, ...]:
    """The metrics of a list with commas; empty for those that the reference allows.

    Raises:
      ConfigError: an unknown metric.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in METRICS:
            raise ConfigError(
                f"--metrics: {name!r} is not known.{nearest(name, METRICS)} Allowed: "
                f"{', '.join(METRICS)}, with commas between."
            )
    return names


def score_set(
    images: ImageSet,
    store: FeatureStore,
    reference: ReferenceSet,
    detector: Detector,
    settings: MetricSettings,
    metrics: Sequence[str] = (),
    label: str = "",
    origin: str = "",
    classes: int = 0,
) -> SetScores:
    """Scores the features of samples.

    Args:
      images: the samples.
      store: their features.
      reference: the real images.
      detector: what made the features.
      settings: of the metrics.
      metrics: those of `METRICS` that are wanted; empty for all that can be had.
      label: for people.
      origin: parts of a protocol that say how the samples were made.
      classes: number of classes that the samples were made for in turn; 0 for independent samples.

    Raises:
      ConfigError: a metric was asked for that the reference or the number of samples does not
        allow.
    """
    reasons = _impossible(store.count, reference, detector, settings)
    for name in metrics:
        if name in reasons:
            raise ConfigError(f"--metrics={name}: {reasons[name]}.")
    wanted = [m for m in METRICS if m in (metrics or METRICS) and m not in reasons]
    notes = tuple(f"no {m}: {reasons[m]}" for m in METRICS if m in reasons and not metrics)
    strata = np.arange(store.count) % classes if classes else None
    scores = _values(store, reference, settings, wanted, strata)
    proxy = store.count < FULL_COUNT
    names = _names(detector, proxy)
    return SetScores(
        key=images.name,
        label=label or images.name,
        samples=store.count,
        proxy=proxy,
        scores={names(name): score.value for name, score in scores.items()},
        intervals={
            names(name): (score.low, score.high)
            for name, score in scores.items()
            if score.low is not None and score.high is not None
        },
        protocol=_protocol(images, reference, detector, settings, wanted, origin)
        + (" strata=yes" if classes else ""),
        notes=notes,
    )


def _impossible(
    count: int, reference: ReferenceSet, detector: Detector, s: MetricSettings
) -> dict[str, str]:
    """Metrics that cannot be had, and why."""
    found: dict[str, str] = {}
    if count < 2:
        found["fid"] = "a covariance needs at least 2 samples"
    if not detector.logits:
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
        found["prc"] = f"{least} images have fewer neighbours than are looked at"
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
    """The distance as papers report it, and extrapolated; from moments where nothing else needs
    single features."""
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


def _names(detector: Detector, proxy: bool) -> Any:
    """What scores are called: "fid" is the distance in FID's own features of enough samples."""
    word = detector.name.replace("-", "_")
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
    """A name without what parts a protocol: folders may be called anything."""
    return "_".join(text.replace("=", "_").split())
