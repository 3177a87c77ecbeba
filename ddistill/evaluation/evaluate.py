"""The evaluation of a run: sample, score, and write results.json and the report."""

import hashlib
import json
from pathlib import Path

from ddistill import data
from ddistill.data import Dataset
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.records.names import METRICS, main_distance
from ddistill.evaluation.records.rows import Row, read_rows, write_rows
from ddistill.evaluation.records.sampler_runs import CALLS, write_calls
from ddistill.evaluation.report.sections import show
from ddistill.evaluation.sampling import Samples, call_digest, collect
from ddistill.evaluation.sampling_plan import Call, planned_calls, without_diverged
from ddistill.evaluation.scored import (
    Scored,
    _record,
    make_rows,
    make_scorer,
    score_call,
)
from ddistill.evaluation.trust import warnings_of
from ddistill.planning.plan import StagePlan
from ddistill.runtime.console import Reporter
from ddistill.runtime.files import read_object_or_none, write_text
from ddistill.runtime.interrupt import StopRequest
from ddistill.runtime.metrics_log import read_metrics
from ddistill.settings import Settings
from ddistill.training.trained import Networks

FORMAT = 3


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
    calls, left_out = without_diverged(planned_calls(settings, plans))
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
    show(
        settings, plans, dataset, networks, scorer, scored, workdir, command, warnings, reporter.say
    )
    reporter.say(f"evaluation: done. Report: {workdir / 'report.html'}")
    return rows


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
