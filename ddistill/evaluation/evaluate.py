"""The evaluation of a run: sample, score, and write results.json and the report."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddistill import data
from ddistill.data import Dataset
from ddistill.errors import ConfigError, check_choice
from ddistill.evaluation.calls import CALLS, CallRecord, write_calls
from ddistill.evaluation.checks import NEIGHBOURS, check_rows
from ddistill.evaluation.machine import command_string, machine_string
from ddistill.evaluation.protocol import Row, read_rows, rows_from_scores, write_rows
from ddistill.evaluation.resampling import Estimate
from ddistill.evaluation.sampling import (
    Call,
    Samples,
    call_digest,
    collect,
    experiment_of,
    planned_calls,
)
from ddistill.evaluation.scorer import Scored, Scorer, make_scorer, protocol_of, score_call
from ddistill.evaluation.students import without_frozen
from ddistill.evaluation.trust import warnings_of
from ddistill.evaluation.vocabulary import METHODS, METRICS, main_distance
from ddistill.runtime.files import read_object_or_none, write_text
from ddistill.settings import Settings
from ddistill.training.checks import check_scale
from ddistill.training.interrupt import StopRequest
from ddistill.training.lineage import Cost, cost, distillation
from ddistill.training.progress import Reporter, read_metrics
from ddistill.training.stages import StagePlan
from ddistill.training.weights import Networks

FORMAT = 3


def check_evaluation(settings: Settings, plans: list[StagePlan]) -> None:
    """Raises `ConfigError` for evaluation settings that cannot work."""
    e = settings.evaluation
    if not e.enabled:
        return
    judges = [p.name for p in plans if p.objective.trains_classifier]
    if e.classifier and not judges:
        raise ConfigError(
            f"config.evaluation.classifier={e.classifier!r}, but no stage of this config trains a "
            "classifier. Set it to '' to sample without scores."
        )
    if e.classifier:
        check_choice("config.evaluation.classifier", e.classifier, judges)
    if e.teacher in judges:
        raise ConfigError(
            f"config.evaluation.teacher={e.teacher!r} is a classifier and makes no images."
        )
    for plan in plans:
        if plan.settings.method:
            check_choice(f"config.stages.{plan.name}.method", plan.settings.method, METHODS)
    teachers = {plan.name: plan for plan in plans if plan.name == e.teacher}
    check_scale(e.guidance, e.teacher, "config.evaluation", teachers)
    if not 0 <= e.clip < math.inf:
        raise ConfigError(f"config.evaluation.clip={e.clip} must be 0 (off) or above.")
    if 0 < e.clip < 1:
        raise ConfigError(
            f"config.evaluation.clip={e.clip} cuts into images, whose pixels are in [-1, 1] with "
            "every schedule. Set 1 or above, or 0 (off)."
        )
    if e.noise_seed < 0:
        raise ConfigError(f"config.evaluation.noise_seed={e.noise_seed} must be 0 or more.")
    if any(seed < 0 for seed in e.tuned_on):
        raise ConfigError(f"config.evaluation.tuned_on={e.tuned_on}: seeds are 0 or more.")
    if e.classifier and e.samples <= NEIGHBOURS:
        raise ConfigError(
            f"config.evaluation.samples={e.samples}: precision and recall look at {NEIGHBOURS} "
            "neighbours of every sample and need more samples than that."
        )
    for key in ("samples", "batch_size", "grid_images", "strip_images"):
        if getattr(e, key) < 1:
            raise ConfigError(f"config.evaluation.{key}={getattr(e, key)} must be 1 or more.")
    if e.samples < max(e.grid_images, e.strip_images):
        raise ConfigError(
            f"config.evaluation.samples={e.samples} is below grid_images={e.grid_images} or "
            f"strip_images={e.strip_images}."
        )
    check_rows(planned_calls(settings, plans))


def evaluate(
    settings: Settings,
    plans: list[StagePlan],
    dataset: Dataset,
    workdir: Path,
    reporter: Reporter,
    stop: StopRequest,
    command: str,
    networks: Networks | None = None,
) -> list[Row]:
    """Samples and scores what `planned_calls` lists and writes the run's results and report.

    Args:
      settings: the run's settings.
      plans: its stages, all complete.
      dataset: training images.
      workdir: the run's folder.
      reporter, stop: progress and polite stopping.
      command: what to type to run it again; shown in the report.
      networks: those that are in memory already.

    Returns:
      The rows of results.json.

    Raises:
      Interrupted: a stop was asked for.
      CheckpointError: a stage is not complete.
    """
    calls, left_out = without_frozen(planned_calls(settings, plans))
    for text in left_out:
        reporter.say(text)
    test = data.load(settings.data, "test") if settings.evaluation.classifier else None
    digest = _digest(settings, plans, calls, test)
    if _is_done(workdir, digest):
        reporter.say(f"evaluation: complete, found on disk. Report: {workdir / 'report.html'}")
        return read_rows(workdir / "results.json")
    # What it says is of samples that are drawn anew now.
    (workdir / "evaluation.json").unlink(missing_ok=True)
    networks = networks or Networks()
    scorer = None
    if test is not None:
        scorer = make_scorer(settings, plans, dataset, test, networks)
        named = {settings.evaluation.classifier: scorer.accuracy, **scorer.others}
        for name, share in named.items():
            reporter.say(f"{name}: right on {share:.1%} of the test images")
    samples: dict[str, Samples] = {}
    for call in calls:
        samples[call.key] = collect(
            call, networks, settings.evaluation, workdir / "samples", reporter, stop
        )
    full = samples[calls[0].key].images
    scored = [score_call(scorer, call, samples[call.key], full) for call in calls]
    for s in scored:
        reporter.say(_line(s))
    warnings = warnings_of(scorer, scored[0]) if scorer else []
    for text in warnings:
        reporter.say(f"warning: {text}")
    rows = make_rows(settings, plans, dataset, scorer, scored, warnings)
    # Results first: whatever becomes of the pictures, the numbers are on disk and can be compared.
    (workdir / "report.html").unlink(missing_ok=True)
    write_rows(workdir / "results.json", rows)
    _join_metrics(plans, workdir)
    records = [_record(settings, plans, scorer, s) for s in scored]
    write_calls(workdir / "evaluation.json", digest, records)
    from ddistill.evaluation.showing import show

    show(
        settings, plans, dataset, networks, scorer, scored, workdir, command, warnings, reporter.say
    )
    reporter.say(f"evaluation: done. Report: {workdir / 'report.html'}")
    return rows


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
        parameters=int((stage.manifest() or {})["parameters"]),
        teacher_calls=spent.teacher_calls,
        updates=spent.updates,
        seconds=spent.seconds,
    )


def _digest(
    settings: Settings, plans: list[StagePlan], calls: list[Call], test: Dataset | None
) -> str:
    """Of all that the results depend on; the stages know the training images."""
    content = {
        "format": FORMAT,
        "name": settings.name,
        "stages": [plan.digest for plan in plans],
        "calls": [
            [c.key, c.label, c.method, c.variant, call_digest(c, settings.evaluation)]
            for c in calls
        ],
        "evaluation": repr(settings.evaluation),
        "test": None if test is None else dict(test.identity),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_done(workdir: Path, digest: str) -> bool:
    if not (workdir / "report.html").exists():
        return False
    try:
        read_rows(workdir / "results.json")
    except ValueError:  # not there, or damaged: it is made again
        return False
    content = read_object_or_none(workdir / "evaluation.json", CALLS)
    return content is not None and content["digest"] == digest


def _join_metrics(plans: list[StagePlan], workdir: Path) -> None:
    """One metrics.jsonl for the run, from those of its stages."""
    rows = [row for plan in plans for row in read_metrics(plan.folder / "metrics.jsonl")]
    write_text(workdir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))


def _line(scored: Scored) -> str:
    s = scored.scores
    quality = "not scored"
    distance = main_distance(s)
    if distance is not None:
        parts = (
            f"{METRICS[distance].label} {_ranged(s[distance], '8.2f')}",
            *(f"{name} {_ranged(s[name], '.3f')}" for name in ("precision", "recall")),
        )
        quality = "  ".join(parts)
    return f"{scored.call.label:<32} {quality}  {s['ms_per_image'].value:.2f} ms/image"


def _ranged(score: Estimate, form: str) -> str:
    text = format(score.value, form)
    if score.low is None or score.high is None:
        return text
    return f"{text} ({format(score.low, form).strip()} to {format(score.high, form).strip()})"
