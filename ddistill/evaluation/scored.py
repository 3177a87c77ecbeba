"""Scores of samples: the features of samples and of real images, and the protocol."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.metrics.copying import share_closer
from ddistill.evaluation.metrics.features import (
    Sampling,
    extract,
    score,
)
from ddistill.evaluation.metrics.paths import path_scores
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.metrics.teacher_distance import feature_scores, pixel_scores
from ddistill.evaluation.records.environment import command_string, machine_string
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row, RowFacts, rows_from_scores
from ddistill.evaluation.records.sampler_runs import SamplerRunRecord
from ddistill.evaluation.sampling import Samples, conditions
from ddistill.evaluation.sampling_plan import SamplerRun, experiment_of
from ddistill.evaluation.scorer import SEARCHED, Nearest, Scorer, named_distances
from ddistill.planning.plan import complete_manifest
from ddistill.settings import Settings


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
        scores = named_distances(
            score(scorer.real, features, logits, sampling=sampling), scorer.fixed
        )
        if logits is not None and scorer.tells_classes:
            classes = logits.argmax(axis=1)
        near = scorer.nearest(features[:SEARCHED])
        scores["copying"] = share_closer(near.distances, scorer.unseen.distances)
    if reference is not None:
        scores |= pixel_scores(samples.images, reference.samples.images)
        if features is not None and reference.features is not None:
            count = 0 if strata is None else int(strata.max()) + 1
            scores |= feature_scores(features, reference.features, count)
    scores["ms_per_image"] = Estimate(samples.ms_per_image)
    return ScoredRun(run, samples, scores, classes, features, near)


def comparable(scored: Sequence[ScoredRun]) -> list[ScoredRun]:
    """The runs that a reader compares: the reference teacher, also with other scales of guidance,
    then by decreasing number of network evaluations of the students the teacher with that many, and
    the students.

    Args:
      scored: all scored runs, the reference teacher first.
    """
    students = [s for s in scored if s.run.role == "student"]
    guided = [s for s in scored if s.run.role == "teacher" and s.run.series]
    chosen = [*scored[:1], *guided]
    for count in sorted({s.run.nfe for s in students}, reverse=True):
        for role in ("teacher", "student"):
            same = [s for s in scored if s.run.role == role and s.run.nfe == count]
            chosen += [s for s in same if not (role == "teacher" and s.run.series)]
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


def sampling_protocol(settings: Settings, run: SamplerRun) -> Protocol:
    """The protocol of samples that no network has scored."""
    e, rates = settings.evaluation, run.plan.settings.ema
    return Protocol(
        features="none",
        features_hash="none",
        reference="none",
        reference_n=1,
        samples=e.samples,
        sampler=run.sampler_name,
        nfe=run.nfe,
        ema=rates[0] if rates else None,
        clip=e.clip or None,
        noise_seed=e.noise_seed,
        quantised=True,
        guidance=run.scale_of_guidance,
    )


def protocol_of(evaluation: Evaluation, scorer: Scorer | None, run: SamplerRun) -> Protocol:
    """The protocol of the scores of a sampler run."""
    sampled = sampling_protocol(evaluation.settings, run)
    protocol = replace(sampled, prompted=evaluation.prompted)
    if scorer is None:
        return protocol
    scored = replace(
        protocol,
        features=scorer.name,
        features_hash=scorer.digest,
        reference=_reference_name(scorer),
        reference_n=scorer.real_count,
    )
    return _resampled(scored, scorer, conditions(run, 0, 1) is not None)


def floor_protocol(evaluation: Evaluation, scorer: Scorer) -> Protocol:
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
        noise_seed=evaluation.settings.evaluation.noise_seed,
        quantised=True,
        prompted=evaluation.prompted,
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
      scored: the scored sampler runs, the reference teacher first.
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
        protocol = floor_protocol(evaluation, scorer).string()
        rows += rows_from_scores(floor, replace(facts, protocol=protocol))
    first = scored[0].run
    guidance = "" if first.guidance == 1.0 else f" guidance={first.guidance:g}"
    facts = replace(facts, reference_teacher=f"{first.sampler_name}-{first.nfe}{guidance}")
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
        protocol=protocol_of(evaluation, scorer, run).string(),
        train_seconds=cost.seconds,
        teacher_calls=cost.teacher_calls,
    )


def record_of_run(
    evaluation: Evaluation, scorer: Scorer | None, run: SamplerRun
) -> SamplerRunRecord:
    """The record of a sampler run in evaluation.json."""
    stage, cost = run.plan, evaluation.cost_of(run)
    classes = getattr(stage.module, "num_classes", 0) if stage.settings.conditional else 0
    return SamplerRunRecord(
        key=run.key,
        label=run.label,
        method=run.method,
        variant=run.variant,
        nfe=run.nfe,
        width=run.width,
        role=run.role,
        protocol=protocol_of(evaluation, scorer, run).string(),
        classes=int(classes),
        parameters=complete_manifest(stage).parameters,
        teacher_calls=cost.teacher_calls,
        updates=cost.updates,
        seconds=cost.seconds,
    )
