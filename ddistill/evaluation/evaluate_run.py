"""The evaluation of a run: samples, scores, results.json and the report."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ddistill import data
from ddistill.data import Dataset
from ddistill.evaluation.attempts import Attempts
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.diverged import without_diverged
from ddistill.evaluation.feature_networks import FeatureChoice, choose_features
from ddistill.evaluation.interpolation import collect_paths
from ddistill.evaluation.metrics.lpips import Lpips, read_lpips
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.perceptual import with_lpips, with_weights
from ddistill.evaluation.prompted import open_protocol, protocol_lines, with_protocol
from ddistill.evaluation.reconstructions import score_reconstructions
from ddistill.evaluation.records.names import METRICS, main_distance
from ddistill.evaluation.records.rows import Row, read_rows, write_rows
from ddistill.evaluation.records.sampler_runs import SCHEMA, write_sampler_runs
from ddistill.evaluation.sampling import collect, run_digest
from ddistill.evaluation.sampling_plan import SamplerRun, planned_runs
from ddistill.evaluation.scored import (
    ScoredRun,
    comparable,
    make_rows,
    record_of_run,
    score_run,
    with_paths,
)
from ddistill.evaluation.scorer import Scorer, make_scorer
from ddistill.evaluation.trust import warnings_of
from ddistill.evaluation.words import chances, with_word_floor, with_words, words_line
from ddistill.planning.plan import StagePlan
from ddistill.runtime.files import read_object_or_none, write_text
from ddistill.runtime.metrics_log import read_metrics

FORMAT = 5


def evaluate_run(evaluation: Evaluation) -> list[Row]:
    """Samples and scores the runs of `planned_runs` and writes results.json and the report.

    Reconstructions of autoencoders are scored before samples, and nothing else in a run without a
    teacher.
    If results with the same digest are on disk, the function only reads them.

    Args:
      evaluation: the run; its stages are complete.

    Returns:
      The rows of results.json.

    Raises:
      Interrupted: a stop was requested.
      CheckpointError: a stage is not complete.
    """
    settings, workdir, reporter = evaluation.settings, evaluation.workdir, evaluation.reporter
    if not settings.evaluation.teacher:
        score_reconstructions(evaluation)
        return []
    runs, left_out = without_diverged(planned_runs(settings, evaluation.plans))
    for text in left_out:
        reporter.say(text)
    choice = choose_features(settings, evaluation.dataset)
    test = data.load(settings.data, "test").as_pictures() if choice.kind else None
    weights = settings.evaluation.lpips_weights
    lpips = read_lpips(weights) if weights else None
    batch = settings.evaluation.batch_size
    opened = open_protocol(settings.evaluation.protocol, batch)
    evaluation = dataclasses.replace(evaluation, prompted=opened.parts if opened else None)
    digest = _digest(evaluation, runs, (choice, lpips), test)
    if _is_done(workdir, digest):
        reporter.say(f"evaluation: complete, found on disk. Report: {workdir / 'report.html'}")
        return read_rows(workdir / "results.json")
    # The file describes earlier samples, which may be replaced from here on.
    (workdir / "evaluation.json").unlink(missing_ok=True)
    scorer = None
    if test is not None:
        scorer = with_word_floor(make_scorer(evaluation, choice, test))
        _say_accuracies(evaluation, scorer)
    attempt = Attempts()
    attempt("Reconstructions", lambda: score_reconstructions(evaluation, scorer))
    samples = {run.key: collect(run, evaluation) for run in runs}
    reference = score_run(scorer, runs[0], samples[runs[0].key])
    scored = [reference]
    scored += [score_run(scorer, run, samples[run.key], reference) for run in runs[1:]]
    scored = attempt("Interpolation", lambda: _interpolated(evaluation, scorer, scored)) or scored
    if lpips is not None:
        scored = attempt("LPIPS", lambda: with_lpips(scored, lpips, batch)) or scored
    scored = attempt("Words", lambda: with_words(evaluation, scorer, scored)) or scored
    if opened is not None:
        title = f"Protocol {opened.protocol.name}"
        scored = attempt(title, lambda: with_protocol(evaluation, opened, scored)) or scored
    for s in scored:
        reporter.say(_line(s))
    for text in protocol_lines(scored, opened) if opened else ():
        reporter.say(text)
    by_chance = chances(evaluation.dataset)
    for text in filter(None, (words_line(s, by_chance) for s in comparable(scored))):
        reporter.say(text)
    warnings = warnings_of(scorer, scored[0]) if scorer else []
    for text in warnings:
        reporter.say(f"warning: {text}")
    rows = make_rows(evaluation, scorer, scored, warnings)
    if lpips is not None:
        rows = with_weights(rows, lpips)
    # The numbers are written before the pictures, so that a picture that fails loses no number.
    (workdir / "report.html").unlink(missing_ok=True)
    write_rows(workdir / "results.json", rows)
    _join_metrics(evaluation.plans, workdir)
    records = [record_of_run(evaluation, scorer, run) for run in runs]
    write_sampler_runs(workdir / "evaluation.json", digest, records)
    from ddistill.evaluation.report.sections import write_run_report  # Matplotlib is slow to import

    write_run_report(evaluation, scorer, scored, warnings, attempt.failed)
    reporter.say(f"evaluation: done. Report: {workdir / 'report.html'}")
    return rows


def _interpolated(
    evaluation: Evaluation, scorer: Scorer | None, scored: Sequence[ScoredRun]
) -> list[ScoredRun]:
    """Adds paths between noises to the runs that a reader compares with the students."""
    chosen = {s.run.key for s in comparable(scored)}
    return [
        with_paths(scorer, s, collect_paths(s.run, s.samples, evaluation))
        if s.run.key in chosen
        else s
        for s in scored
    ]


def _say_accuracies(evaluation: Evaluation, scorer: Scorer) -> None:
    named = {evaluation.settings.evaluation.classifier: scorer.accuracy, **scorer.others}
    if scorer.fixed:
        evaluation.reporter.say(f"scores: features of {scorer.name}, weights {scorer.digest}")
    for name, share in named.items():
        if share is None:
            continue
        evaluation.reporter.say(f"{name}: accuracy {share:.1%} on the test images")


def _digest(
    evaluation: Evaluation,
    runs: Sequence[SamplerRun],
    networks: tuple[FeatureChoice, Lpips | None],
    test: Dataset | None,
) -> str:
    """Digest of everything that the results depend on; the stages cover the training images."""
    choice, lpips = networks
    settings = evaluation.settings
    content = {
        "format": FORMAT,
        "name": settings.name,
        "stages": [plan.digest for plan in evaluation.plans],
        "sampler_runs": [
            [run.key, run.label, run.method, run.variant, run_digest(run, settings.evaluation)]
            for run in runs
        ],
        "evaluation": repr(settings.evaluation),
        "features": choice.identity,
        "lpips": lpips.digest if lpips else None,
        "test": None if test is None else dict(test.identity),
    }
    if evaluation.prompted is not None:
        content["prompted"] = evaluation.prompted.string()
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_done(workdir: Path, digest: str) -> bool:
    if not (workdir / "report.html").exists():
        return False
    try:
        read_rows(workdir / "results.json")
    except ValueError:  # missing or damaged: the evaluation writes it again
        return False
    content = read_object_or_none(workdir / "evaluation.json", SCHEMA)
    return content is not None and content["digest"] == digest


def _join_metrics(plans: Sequence[StagePlan], workdir: Path) -> None:
    """Joins metrics.jsonl of all stages into one file of the run."""
    rows = [row for plan in plans for row in read_metrics(plan.folder / "metrics.jsonl")]
    write_text(workdir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in rows))


def _line(scored: ScoredRun) -> str:
    s = scored.scores
    quality = "not scored"
    distance = main_distance(s)
    if distance is not None:
        parts = (
            f"{METRICS[distance].label} {_with_interval(s[distance], '8.2f')}",
            *(f"{name} {_with_interval(s[name], '.3f')}" for name in ("precision", "recall")),
        )
        quality = "  ".join(parts)
    return f"{scored.run.label:<32} {quality}  {s['ms_per_image'].value:.2f} ms/image"


def _with_interval(score: Estimate, form: str) -> str:
    text = format(score.value, form)
    if score.low is None or score.high is None:
        return text
    return f"{text} ({format(score.low, form).strip()} to {format(score.high, form).strip()})"
