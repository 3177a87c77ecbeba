"""Scores of samples: the features of samples and of real images, and the protocol."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float, Int

from ddistill.data import Dataset
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.feature_networks import FeatureChoice, open_features
from ddistill.evaluation.metrics.copying import nearest, share_closer
from ddistill.evaluation.metrics.features import (
    Reference,
    Sampling,
    extract,
    fixed_strata,
    reference,
    score,
)
from ddistill.evaluation.metrics.paths import path_scores
from ddistill.evaluation.metrics.resampling import USUAL, Estimate, Resampling
from ddistill.evaluation.metrics.teacher_distance import feature_scores, pixel_scores
from ddistill.evaluation.records.environment import command_string, machine_string
from ddistill.evaluation.records.names import LITE0_DISTANCES
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row, RowFacts, rows_from_scores
from ddistill.evaluation.records.sampler_runs import SamplerRunRecord
from ddistill.evaluation.sampling import Samples, conditions
from ddistill.evaluation.sampling_plan import SamplerRun, experiment_of
from ddistill.objectives.classification import Classification, Classifier
from ddistill.planning.plan import StagePlan, complete_manifest
from ddistill.settings import Settings

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
class ScoredRun:
    """A sampler run with its samples and scores.

    Attributes:
      run: the sampler run.
      samples: its images and their cost.
      scores: value and interval by metric.
      classes: `[N]` class that the classifier predicts for each sample; zeros without a classifier.
      features: `[N, D]` features of the samples; None without a classifier.
      nearest: nearest training images of the first `SEARCHED` samples; None without a classifier.
      paths: images between pairs of noises; None if there are none.
    """

    run: SamplerRun
    samples: Samples
    scores: Mapping[str, Estimate]
    classes: Int[np.ndarray, " N"]
    features: Float[np.ndarray, "N D"] | None = None
    nearest: Nearest | None = None
    paths: Float[np.ndarray, "P F H W C"] | None = None


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
      real_count: number of training images behind `real`.
      floor: scores of the test images against the training images; only scores that do not depend
        on the number of images, or that are computed at `count` images.
      floor_count: number of test images.
      floor_strata: whether each class has a fixed number of test images.
      count: number of images for recall, coverage and class shares, of samples and test images.
      resampling: number of subsets and seed.
      accuracy: accuracy of the classifier on the test images; None without a classifier.
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
    real_count: int
    floor: Mapping[str, Estimate]
    floor_count: int
    floor_strata: bool
    count: int
    resampling: Resampling
    accuracy: float | None
    others: Mapping[str, float]
    batch: int
    test: Dataset
    unseen: Nearest
    unseen_index: Int[np.ndarray, " M"]


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
        str(plan.settings.network["name"]) if plan else "",
        settings.batch_size,
    )
    apply, batch = network.apply, network.batch
    count = min(len(dataset), MOST_REAL) if network.fixed else len(dataset)
    images = _Rows(dataset, np.arange(count) * len(dataset) // count)
    _, train_features = extract(apply, images, batch, quantise=True)
    logits, features = extract(apply, test, batch, quantise=True)
    # A classifier of something else than the data's classes says nothing about these.
    apart = plan is not None and not network.fixed and plan.objective.trains.classes
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
        real_count=len(images),
        floor=_named(floor, network.fixed),
        floor_count=len(test),
        floor_strata=strata is not None,
        count=count,
        resampling=resampling,
        accuracy=None
        if plan is None or logits is None
        else measured_accuracy(plan, networks(plan), test, batch),
        others=others,
        batch=batch,
        test=test,
        unseen=_nearest(real, features[unseen_index]),
        unseen_index=unseen_index,
    )


def _nearest(real: Reference, features: Float[np.ndarray, "N D"]) -> Nearest:
    return Nearest(*nearest(features, len(real.features), lambda rows: real.features[rows]))


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
    shares = []
    for view in objective.views:
        logits, _ = extract(jax.jit(lambda images, of=view.of: classifier(of(images))), test, batch)
        right = np.asarray(test.labels) if view.label is None else view.label
        shares.append(float((logits.argmax(axis=1) == right).mean()))
    return float(np.mean(shares))


def _named(scores: Mapping[str, Estimate], fixed: bool) -> dict[str, Estimate]:
    """The scores, with the distances named after the fixed network."""
    return {LITE0_DISTANCES.get(k, k) if fixed else k: score for k, score in scores.items()}


def score_run(
    scorer: Scorer | None,
    run: SamplerRun,
    samples: Samples,
    reference: ScoredRun | None = None,
) -> ScoredRun:
    """Scores one sampler run.

    Args:
      scorer: the feature network; None to compute only PSNR and time.
      run: the sampler run.
      samples: its samples.
      reference: the scored reference teacher, with images from the same noise; None to score the
        reference teacher itself.
    """
    scores: dict[str, Estimate] = {}
    classes = np.zeros(len(samples.images), np.int64)
    features = near = None
    strata = conditions(run, 0, len(samples.images))
    if scorer is not None:
        logits, features = extract(scorer.apply, samples.images, scorer.batch, quantise=True)
        sampling = Sampling(scorer.count, strata, scorer.resampling)
        scores = _named(score(scorer.real, features, logits, sampling=sampling), scorer.fixed)
        if logits is not None and scorer.real.histogram is not None:
            classes = logits.argmax(axis=1)
        near = _nearest(scorer.real, features[:SEARCHED])
        scores["copying"] = share_closer(near.distances, scorer.unseen.distances)
    if reference is not None:
        scores |= pixel_scores(samples.images, reference.samples.images)
        if features is not None and reference.features is not None:
            count = 0 if strata is None else int(strata.max()) + 1
            scores |= feature_scores(features, reference.features, count)
    scores["ms_per_image"] = Estimate(samples.ms_per_image)
    return ScoredRun(run, samples, scores, classes, features, near)


def comparable(scored: Sequence[ScoredRun]) -> list[ScoredRun]:
    """The runs that a reader compares: the reference teacher, then by decreasing number of network
    evaluations of the students the teacher with that many, and the students.

    Args:
      scored: all scored runs, the reference teacher first.
    """
    students = [s for s in scored if s.run.role == "student"]
    chosen = list(scored[:1])
    for count in sorted({s.run.nfe for s in students}, reverse=True):
        for role in ("teacher", "student"):
            chosen += [s for s in scored if s.run.role == role and s.run.nfe == count]
    return chosen


def with_paths(
    scorer: Scorer | None, scored: ScoredRun, paths: Float[np.ndarray, "P F H W C"] | None
) -> ScoredRun:
    """Adds paths between noises, and with a classifier the scores of their smoothness."""
    if paths is None:
        return scored
    if scorer is None:
        return replace(scored, paths=paths)
    flat = paths.reshape(-1, *paths.shape[2:])
    _, features = extract(scorer.apply, flat, scorer.batch, quantise=True)
    scores = path_scores(features.reshape(*paths.shape[:2], -1))
    return replace(scored, paths=paths, scores={**scored.scores, **scores})


def protocol_of(settings: Settings, scorer: Scorer | None, run: SamplerRun) -> Protocol:
    """The protocol of the scores of a sampler run."""
    e, rates = settings.evaluation, run.plan.settings.ema
    protocol = Protocol(
        features=scorer.name if scorer else "none",
        features_hash=scorer.digest if scorer else "none",
        reference=_reference_name(scorer) if scorer else "none",
        reference_n=scorer.real_count if scorer else 1,
        samples=e.samples,
        sampler=run.sampler_name,
        nfe=run.nfe,
        ema=rates[0] if rates else None,
        clip=e.clip or None,
        noise_seed=e.noise_seed,
        quantised=True,
        guidance=None if run.guidance == 1.0 else run.guidance,
    )
    if scorer is None:
        return protocol
    return _resampled(protocol, scorer, conditions(run, 0, 1) is not None)


def floor_protocol(settings: Settings, scorer: Scorer) -> Protocol:
    """The protocol of the scores of the test images."""
    protocol = Protocol(
        features=scorer.name,
        features_hash=scorer.digest,
        reference=_reference_name(scorer),
        reference_n=scorer.real_count,
        samples=scorer.floor_count,
        sampler="none",
        nfe=0,
        ema=None,
        clip=None,
        noise_seed=settings.evaluation.noise_seed,
        quantised=True,
    )
    return _resampled(protocol, scorer, scorer.floor_strata)


def _reference_name(scorer: Scorer) -> str:
    # The name of a folder may contain characters that a protocol must not contain.
    return re.sub(r"[\s=,;|`:]+", "_", f"{scorer.data}/train")


def _resampled(protocol: Protocol, scorer: Scorer, strata: bool) -> Protocol:
    """The protocol with the counts and seeds of the resampling."""
    return replace(
        protocol,
        floor=scorer.floor_count,
        count=scorer.count,
        subsets=scorer.resampling.subsets,
        splits=scorer.resampling.splits,
        subset_seed=scorer.resampling.seed,
        strata=strata,
    )


def make_rows(
    evaluation: Evaluation,
    scorer: Scorer | None,
    scored: Sequence[ScoredRun],
    warnings: Sequence[str] = (),
) -> list[Row]:
    """Makes the rows of results.json: the scores of the test images, then of every sampler run.

    Args:
      evaluation: the run.
      scorer: the feature network; None without scores of test images.
      scored: the scored sampler runs.
      warnings: why the scores may mean little; every row carries them.
    """
    settings = evaluation.settings
    facts = RowFacts(
        experiment=settings.name,
        method="real",
        data=evaluation.dataset.name,
        nfe=0,
        students=0,
        width=0,
        seed=settings.seed,
        protocol="none",
        train_seconds=0.0,
        teacher_calls=0,
        command=command_string(),
        machine=machine_string(),
        tuned_on=settings.evaluation.tuned_on,
        warnings=" ".join(warnings),
    )
    rows: list[Row] = []
    if scorer is not None:
        floor = dict(scorer.floor)
        if scorer.accuracy is not None:
            floor["accuracy"] = Estimate(scorer.accuracy)
        protocol = floor_protocol(settings, scorer).string()
        rows += rows_from_scores(floor, replace(facts, protocol=protocol))
    for s in scored:
        rows += rows_from_scores(s.scores, _facts_of(evaluation, scorer, s.run, facts))
    return rows


def _facts_of(
    evaluation: Evaluation, scorer: Scorer | None, run: SamplerRun, facts: RowFacts
) -> RowFacts:
    cost = evaluation.cost_of(run)
    return replace(
        facts,
        experiment=experiment_of(evaluation.settings, run),
        method=run.method,
        nfe=run.nfe,
        students=run.students,
        width=run.width,
        protocol=protocol_of(evaluation.settings, scorer, run).string(),
        train_seconds=cost.seconds,
        teacher_calls=cost.teacher_calls,
    )


def record_of_run(
    evaluation: Evaluation, scorer: Scorer | None, run: SamplerRun
) -> SamplerRunRecord:
    """The record of a sampler run in evaluation.json."""
    stage, cost = run.plan, evaluation.cost_of(run)
    classes = stage.module.num_classes if stage.settings.conditional else 0  # type: ignore[attr-defined]
    return SamplerRunRecord(
        key=run.key,
        label=run.label,
        method=run.method,
        variant=run.variant,
        nfe=run.nfe,
        width=run.width,
        role=run.role,
        protocol=protocol_of(evaluation.settings, scorer, run).string(),
        classes=int(classes),
        parameters=complete_manifest(stage).parameters,
        teacher_calls=cost.teacher_calls,
        updates=cost.updates,
        seconds=cost.seconds,
    )
