"""Scores of samples: the feature network, features of real images, and the protocol of numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ddistill.data import Dataset
from ddistill.evaluation.metrics.features import (
    Reference,
    Sampling,
    extract,
    fixed_strata,
    params_hash,
    reference,
    score,
)
from ddistill.evaluation.metrics.pixels import psnr
from ddistill.evaluation.metrics.resampling import USUAL, Estimate, Resampling
from ddistill.evaluation.records.environment import command_string, machine_string
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row, rows_from_scores
from ddistill.evaluation.records.sampler_runs import CallRecord
from ddistill.evaluation.sampling import Samples, conditions
from ddistill.evaluation.sampling_plan import Call, experiment_of
from ddistill.planning.lineage import Cost, cost, distillation
from ddistill.planning.plan import StagePlan, complete_manifest
from ddistill.settings import Settings
from ddistill.training.trained import Networks


@dataclass(frozen=True)
class Scored:
    """A call with its samples and scores.

    Attributes:
      call: what was sampled.
      samples: the images and their cost.
      scores: value and interval by metric.
      classes: `[N]` class that the classifier sees in each sample.
    """

    call: Call
    samples: Samples
    scores: dict[str, Estimate]
    classes: np.ndarray


@dataclass(frozen=True)
class Scorer:
    """The feature network and the real images' features.

    Attributes:
      apply: jitted images -> (logits, features).
      name: name of the feature network.
      data: name of the data set.
      digest: hash of its weights.
      real: features of the training images.
      real_count: their number.
      floor: scores of the test images against them, those alone that do not depend on the number
        of images or are taken at `count`.
      floor_count: number of test images.
      floor_strata: whether the test images have fixed numbers for each class.
      count: images at which recall and the like are taken, of samples and of test images.
      resampling: number of subsets and seed.
      accuracy: the classifier's accuracy on the test images.
      others: accuracy of the run's other classifiers, those that students are compared in.
      batch: images a call.
    """

    apply: Any
    name: str
    data: str
    digest: str
    real: Reference
    real_count: int
    floor: dict[str, Estimate]
    floor_count: int
    floor_strata: bool
    count: int
    resampling: Resampling
    accuracy: float
    others: Mapping[str, float]
    batch: int


def make_scorer(
    settings: Settings,
    plans: list[StagePlan],
    dataset: Dataset,
    test: Dataset,
    networks: Networks,
) -> Scorer:
    """Features of the real images, and the floor: test images scored as if they were samples."""
    plan = next(p for p in plans if p.name == settings.evaluation.classifier)
    classifier = networks(plan)
    batch = settings.evaluation.batch_size
    apply = jax.jit(lambda images: classifier(images))
    _, train_features = extract(apply, dataset, batch, quantise=True)
    logits, features = extract(apply, test, batch, quantise=True)
    real = reference(train_features, np.asarray(dataset.labels), dataset.num_classes)
    samples = settings.evaluation.samples
    shares = real.histogram if real.histogram is not None else np.zeros(0)
    strata = fixed_strata(np.asarray(test.labels), shares)
    count = min(samples, len(test), real.max_neighbours)
    resampling = USUAL.for_features(train_features.shape[1])
    floor = score(real, features, logits, sampling=Sampling(count, strata, resampling))
    if len(test) != samples:
        del floor["fd"]  # of another number of images than the samples', and not comparable
    others = {
        p.name: accuracy(extract(jax.jit(networks(p).__call__), test, batch)[0], test)
        for p in plans
        if p.objective.trains_classifier and p is not plan
    }
    return Scorer(
        apply=apply,
        name=str(plan.settings.network["name"]),
        data=dataset.name,
        digest=params_hash(classifier.weights),
        real=real,
        real_count=len(dataset),
        floor=floor,
        floor_count=len(test),
        floor_strata=strata is not None,
        count=count,
        resampling=resampling,
        accuracy=accuracy(logits, test),
        others=others,
        batch=batch,
    )


def accuracy(logits: np.ndarray, dataset: Dataset) -> float:
    """Share of the images whose class has the greatest logit."""
    return float((logits.argmax(axis=1) == np.asarray(dataset.labels)).mean())


def score_call(scorer: Scorer | None, call: Call, samples: Samples, full: np.ndarray) -> Scored:
    """Scores one call; `full` are the full teacher's images from the same noise."""
    scores: dict[str, Estimate] = {}
    classes = np.zeros(len(samples.images), np.int64)
    if scorer is not None:
        logits, features = extract(scorer.apply, samples.images, scorer.batch, quantise=True)
        strata = conditions(call, 0, len(samples.images))
        sampling = Sampling(scorer.count, strata, scorer.resampling)
        scores = score(scorer.real, features, logits, sampling=sampling)
        classes = logits.argmax(axis=1)
    if call.role != "full":
        ratio = psnr(np.clip(samples.images, -1, 1), np.clip(full, -1, 1))
        scores["psnr_to_teacher"] = Estimate(ratio)
    scores["ms_per_image"] = Estimate(samples.ms_per_image)
    return Scored(call, samples, scores, classes)


def protocol_of(settings: Settings, scorer: Scorer | None, call: Call | None) -> Protocol:
    """The protocol of a call's numbers, or of the floor's where `call` is None."""
    e = settings.evaluation
    ema = call.plan.settings.ema[0] if call is not None and call.plan.settings.ema else None
    return Protocol(
        features=scorer.name if scorer else "none",
        features_hash=scorer.digest if scorer else "none",
        # A folder's name may hold what a protocol may not.
        reference=re.sub(r"[\s=,;|`:]+", "_", f"{scorer.data}/train") if scorer else "none",
        reference_n=scorer.real_count if scorer else 1,
        samples=e.samples if call is not None or scorer is None else scorer.floor_count,
        sampler=call.sampler_name if call is not None else "none",
        nfe=call.nfe if call is not None else 0,
        ema=ema,
        clip=(e.clip or None) if call is not None else None,
        noise_seed=e.noise_seed,
        quantised=True,
        guidance=None if call is None or call.guidance == 1.0 else call.guidance,
        **(_resampled(scorer, call) if scorer else {}),
    )


def _resampled(scorer: Scorer, call: Call | None) -> dict[str, Any]:
    """Parts of the protocol that say how scores were resampled."""
    return {
        "floor": scorer.floor_count,
        "count": scorer.count,
        "subsets": scorer.resampling.subsets,
        "splits": scorer.resampling.splits,
        "subset_seed": scorer.resampling.seed,
        "strata": scorer.floor_strata if call is None else conditions(call, 0, 1) is not None,
    }


def make_rows(
    settings: Settings,
    plans: list[StagePlan],
    dataset: Dataset,
    scorer: Scorer | None,
    scored: list[Scored],
    warnings: Sequence[str] = (),
) -> list[Row]:
    """The rows of results.json: the floor, then every call; each says the run's warnings.

    What a student cost counts every stage between the teacher and it.
    """
    common: dict[str, Any] = {
        "data": dataset.name,
        "seed": settings.seed,
        "command": command_string(),
        "machine": machine_string(),
        "tuned_on": settings.evaluation.tuned_on,
        "warnings": " ".join(warnings),
    }
    floor = (
        []
        if scorer is None
        else rows_from_scores(
            {**scorer.floor, "accuracy": Estimate(scorer.accuracy)},
            experiment=settings.name,
            method="real",
            nfe=0,
            students=0,
            width=0,
            protocol=protocol_of(settings, scorer, None).string(),
            train_seconds=0.0,
            teacher_calls=0,
            **common,
        )
    )
    return [*floor, *(row for s in scored for row in _rows_of(settings, plans, scorer, s, common))]


def _spent(settings: Settings, plans: list[StagePlan], call: Call) -> Cost:
    return cost(distillation(call.plan, settings.evaluation.teacher, plans), call.student)


def _rows_of(
    settings: Settings,
    plans: list[StagePlan],
    scorer: Scorer | None,
    scored: Scored,
    common: Mapping[str, Any],
) -> list[Row]:
    spent = _spent(settings, plans, scored.call)
    return rows_from_scores(
        scored.scores,
        experiment=experiment_of(settings, scored.call),
        method=scored.call.method,
        nfe=scored.call.nfe,
        students=scored.call.students,
        width=scored.call.width,
        protocol=protocol_of(settings, scorer, scored.call).string(),
        train_seconds=spent.seconds,
        teacher_calls=spent.teacher_calls,
        **common,
    )


def _record(
    settings: Settings, plans: list[StagePlan], scorer: Scorer | None, scored: Scored
) -> CallRecord:
    call, stage = scored.call, scored.call.plan
    spent = _spent(settings, plans, call)
    classes = stage.module.num_classes if stage.settings.conditional else 0  # type: ignore[attr-defined]
    return CallRecord(
        key=call.key,
        label=call.label,
        method=call.method,
        variant=call.variant,
        nfe=call.nfe,
        width=call.width,
        role=call.role,
        protocol=protocol_of(settings, scorer, call).string(),
        classes=int(classes),
        parameters=complete_manifest(stage).parameters,
        teacher_calls=spent.teacher_calls,
        updates=spent.updates,
        seconds=spent.seconds,
    )
