"""The report of a run: chooses its pictures, tables and sentences from the scored samples."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from ddistill.data import Dataset
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.figures.animation import animate
from ddistill.evaluation.figures.image_grids import Grid, ImageRow, Strip
from ddistill.evaluation.figures.plots import ClassChart, Curve, ScorePlot
from ddistill.evaluation.figures.tables import Table, line_of, number, range_of, stat_text
from ddistill.evaluation.metrics.precision_recall import class_histogram
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.prompts import caption_rows
from ddistill.evaluation.reconstructions import PICTURE, reconstruction_grids, stored_scores
from ddistill.evaluation.records.aggregate import Stat
from ddistill.evaluation.records.environment import machine_string
from ddistill.evaluation.records.names import (
    LITE0_DISTANCES,
    METHODS,
    METRICS,
    main_distance,
)
from ddistill.evaluation.records.notes import listed
from ddistill.evaluation.report.costs_table import costs_table
from ddistill.evaluation.report.details import files_of, meanings, meanings_note
from ddistill.evaluation.report.diagnostics import diagnostic_grids
from ddistill.evaluation.report.memorisation import class_grids, nearest_parts
from ddistill.evaluation.report.report import (
    Attempts,
    Files,
    Highlight,
    Part,
    Report,
    write_report,
)
from ddistill.evaluation.report.strips import run_strip
from ddistill.evaluation.report.students_table import students_table
from ddistill.evaluation.report.teacher_parts import consistency_parts, interpolation_parts
from ddistill.evaluation.report.texts_parts import prompt_parts, protocol_parts, word_parts
from ddistill.evaluation.sampling import conditions
from ddistill.evaluation.scored import ScoredRun, comparable, protocol_of
from ddistill.evaluation.scorer import Scorer
from ddistill.parsing import to_plain
from ddistill.planning.plan import StagePlan
from ddistill.runtime.metrics_log import read_metrics
from ddistill.settings import Settings
from ddistill.text import printable

_COLUMNS = (
    "fd_infinity",
    "fd",
    "precision",
    "recall",
    "density",
    "coverage",
    "class_tv",
    "psnr_to_teacher",
)
# Metrics with intervals; intervals of all metrics would make the table too wide to read.
_WITH_INTERVAL = ("fd_infinity", "fd", "precision", "recall")


def write_run_report(
    evaluation: Evaluation,
    scorer: Scorer | None,
    scored: Sequence[ScoredRun],
    warnings: Sequence[str] = (),
    failed: Sequence[tuple[str, str]] = (),
) -> Path:
    """Writes report.html and its pictures and returns the path of the page.

    A part that fails is replaced by the error.

    Args:
      evaluation: the run.
      scorer: the feature network; None for a report without scores.
      scored: the scored sampler runs, the reference teacher first.
      warnings: why the scores may mean little.
      failed: (heading, error) of parts that failed before.
    """
    settings, plans, dataset = evaluation.settings, evaluation.plans, evaluation.dataset
    networks, e = evaluation.networks, settings.evaluation
    attempt = Attempts()
    attempt.failed += failed
    students = attempt("Students", lambda: students_table(plans, networks, dataset, e))
    samples = attempt("Samples", lambda: [_grid(evaluation, scored)])
    diagnostics = attempt("Diagnostics", lambda: diagnostic_grids(plans, networks, e))
    strip = attempt("From noise to image", lambda: run_strip(evaluation, scored))
    curves = attempt("Training", lambda: _curves(plans))
    plot = classes = None
    if scorer:
        plot = attempt("Quality against network evaluations", lambda: _plot(scorer, scored))
    if scorer and scorer.tells_classes:
        classes = attempt("Classes", lambda: _classes(dataset, scorer, scored))
    tables = [
        *([_scores(evaluation, scorer, scored)] if scorer else []),
        *([students] if students else []),
        costs_table(plans, scored),
    ]
    report = Report(
        title=settings.name,
        subtitle=_subtitle(dataset, scored),
        command=evaluation.command,
        warnings=warnings,
        highlights=_highlights(scored) if scorer else [],
        grids=[*(samples or []), *(diagnostics or [])],
        plot=plot,
        tables=tables,
        strip=strip,
        parts=_parts(attempt, evaluation, scorer, scored, strip),
        classes=classes,
        curves=curves or [],
        meanings=meanings(scorer, scored),
        meanings_note=meanings_note(scorer),
        files=attempt("Files and commands", lambda: files_of(evaluation, scored)) or Files(),
        config=to_plain(dataclasses.asdict(settings)),
        defaults=evaluation.defaults,
        protocols=[(s.run.label, protocol_of(evaluation, scorer, s.run).string()) for s in scored],
        provenance=_provenance(evaluation, scorer),
        notes=[*_variants(plans), *_tuned(settings)],
        failed=attempt.failed,
    )
    return write_report(evaluation.workdir, report, say=evaluation.reporter.say)


def _parts(
    attempt: Attempts,
    evaluation: Evaluation,
    scorer: Scorer | None,
    scored: Sequence[ScoredRun],
    strip: Strip | None,
) -> list[Part]:
    """The comparison with the teacher, paths between noises, classes and training images."""
    dataset = evaluation.dataset
    labels = conditions(scored[0].run, 0, len(scored[0].samples.images))
    makers: list[tuple[str, Callable[[], list[Part]]]] = [
        ("Prompts", lambda: prompt_parts(evaluation, scored)),
        ("Words of the captions", lambda: word_parts(evaluation, scorer, scored)),
        ("Published protocol", lambda: protocol_parts(evaluation, scored)),
        ("Reconstructions", lambda: _reconstructions(evaluation)),
        ("Animation", lambda: _animation(strip)),
        ("Consistency with the teacher", lambda: consistency_parts(scorer, scored)),
        ("Interpolation", lambda: interpolation_parts(scorer, scored)),
        ("Nearest training images", lambda: nearest_parts(dataset, scorer, scored)),
    ]
    if labels is not None or (scorer is not None and scorer.tells_classes):
        classes = "classes_of_noise.png" if labels is not None else "classes_of_samples.png"
        makers.insert(
            -1,
            (
                "Class by class",
                lambda: [
                    Part("Class by class", class_grids(dataset, scorer, scored, labels), classes)
                ],
            ),
        )
    found = [attempt(title, make) for title, make in makers]
    return [part for parts in found for part in parts or []]


def _reconstructions(evaluation: Evaluation) -> list[Part]:
    grids = reconstruction_grids(evaluation)
    return [Part("Reconstructions", grids, PICTURE)] if grids else []


def _animation(strip: Strip | None) -> list[Part]:
    made = strip and animate(strip, "Denoising, animated", "The same states, one after another.")
    return [Part(made.title, made, "denoising.png")] if made else []


def _students(scored: Sequence[ScoredRun]) -> list[ScoredRun]:
    return [s for s in scored if s.run.role == "student"]


def _subtitle(dataset: Dataset, scored: Sequence[ScoredRun]) -> str:
    teacher, students = scored[0].run, _students(scored)
    counts = ", ".join(dict.fromkeys(str(s.run.nfe) for s in students))
    methods = ", ".join(dict.fromkeys(METHODS[s.run.method].label for s in students))
    distilled = f", distilled by {methods} into students of {counts}" if students else ""
    return (
        f"A diffusion teacher trained on {dataset.name} and sampled in {teacher.nfe} network "
        f"evaluations{distilled}."
    )


def _variants(plans: Sequence[StagePlan]) -> list[str]:
    variants = [p for p in plans if p.settings.variant]
    if not variants:
        return []
    return ["Variants: " + ", ".join(f"{p.name} = {p.settings.variant}" for p in variants) + "."]


def _tuned(settings: Settings) -> list[str]:
    tuned = settings.evaluation.tuned_on
    if not tuned:
        return []
    relation = "one of them" if settings.seed in tuned else "a different one"
    seeds = f"seed{'s' if len(tuned) > 1 else ''} {listed(tuned)}"
    return [f"Settings were tuned on {seeds}; this run has seed {settings.seed}, {relation}."]


def _highlights(scored: Sequence[ScoredRun]) -> list[Highlight]:
    teacher, name = scored[0], main_distance(scored[0].scores)
    if name is None:
        return []
    label = METRICS[name].label

    def tile(s: ScoredRun, note: str) -> Highlight:
        return Highlight(number(name, s.scores[name].value), f"{label} of {s.run.label}", note)

    def text(s: ScoredRun) -> str:
        return stat_text(name, _stat(s.scores[name]))

    def interval(s: ScoredRun) -> str:
        return text(s).partition(" ")[2]

    tiles = [tile(teacher, f"{interval(teacher)}, the teacher".lstrip(", "))]
    for s in _students(scored)[:3]:
        same = [t for t in scored if t.run.role == "teacher" and t.run.nfe == s.run.nfe]
        other = f"{same[0].run.label}: {text(same[0])}" if same else ""
        tiles.append(tile(s, "; ".join(part for part in (interval(s), other) if part)))
    return tiles


def _grid(evaluation: Evaluation, scored: Sequence[ScoredRun]) -> Grid:
    """The reference teacher, then for each NFE of a student the teacher and the student."""
    dataset, n = evaluation.dataset, evaluation.settings.evaluation.grid_images
    rows = [_row(s, n) for s in comparable(scored)]
    real = dataset.take(np.linspace(0, len(dataset) - 1, n).astype(int))
    rows.append(ImageRow("real training images", np.asarray(real)))
    return Grid(
        "Same noise, same column",
        rows,
        "All rows start from the same noise, so a column shows the effect of distillation."
        + _prompts(evaluation, scored, n),
    )


def _prompts(evaluation: Evaluation, scored: Sequence[ScoredRun], count: int) -> str:
    """A sentence with the texts of the columns; "" for networks that read no texts."""
    dataset, captions = evaluation.dataset, evaluation.dataset.texts.get("caption")
    if scored[0].run.plan.tokenizer is None or captions is None:
        return ""
    rows = caption_rows(evaluation.settings.evaluation, len(dataset))
    shown = (printable(captions[int(rows[i % len(rows)])]) for i in range(count))
    return " Texts of the columns: " + "; ".join(f"{i}. {t}" for i, t in enumerate(shown, 1)) + "."


def _row(scored: ScoredRun, count: int) -> ImageRow:
    images = np.clip(scored.samples.images[:count], -1, 1)
    name = main_distance(scored.scores)
    note = f"{METRICS[name].label} {number(name, scored.scores[name].value)}" if name else ""
    return ImageRow(scored.run.label, images, note)


def _plot(scorer: Scorer, scored: Sequence[ScoredRun]) -> ScorePlot | None:
    metric = main_distance(scored[0].scores)
    if metric is None:
        return None
    lines: dict[tuple[str, str], dict[int, Stat]] = {}
    for s in scored:
        role = "student" if s.run.role == "student" else "teacher"
        name = s.run.series or METHODS[s.run.method].label
        lines.setdefault((name, role), {})[s.run.nfe] = _stat(s.scores[metric])
    floor = scorer.floor.get(metric)
    return ScorePlot(
        [line_of(name, dict(sorted(own.items())), role) for (name, role), own in lines.items()],
        floor=None if floor is None else floor.value,
        floor_range=None if floor is None else range_of(_stat(floor)),
        floor_label="real test images",
        ylabel=METRICS[metric].label + ("" if scorer.fixed else f" ({scorer.name})"),
        caption=f"{_DISTANCES[_plain_name(metric)]} Lower is better; bars are 95 % intervals over "
        "draws of the samples. The floor is the distance of the test images, scored like samples.",
    )


_DISTANCES = {
    "fd_infinity": "Frechet distance to the training images, extrapolated to infinitely many "
    "samples, because distances at different numbers of samples are not comparable.",
    "fd": "Frechet distance of these samples to the training images.",
}


_PLAIN_NAMES = {ours: name for name, ours in LITE0_DISTANCES.items()}


def _plain_name(metric: str) -> str:
    """The name of a distance without that of its features."""
    return _PLAIN_NAMES.get(metric, metric)


def _features_sentence(scorer: Scorer) -> str:
    """One sentence or two on the features, for captions."""
    accurate = "" if scorer.accuracy is None else f"{scorer.accuracy:.1%} on the test images."
    if not scorer.fixed:
        return f"The classifier that gives the features has an accuracy of {accurate}"
    fixed = f"The features are those of {scorer.name}, which this run did not train."
    told = f" The classifier that gives class TV is right for {accurate}"
    return fixed + (told if scorer.tells_classes else "")


def _stat(score: Estimate) -> Stat:
    return Stat(score.value, None, 1, score.low, score.high)


def _scores(evaluation: Evaluation, scorer: Scorer, scored: Sequence[ScoredRun]) -> Table:
    distances = LITE0_DISTANCES if scorer.fixed else {}
    names = [distances.get(c, c) for c in _COLUMNS]
    columns = ["sampler", "NFE", *(METRICS[c].label for c in names)]
    rows, roles = [], []
    for s in scored:
        rows.append([s.run.label, str(s.run.nfe), *_cells(s.scores, names)])
        roles.append("student" if s.run.role == "student" else "teacher")
    rows.append([f"real test images ({scorer.floor_count})", "0", *_cells(scorer.floor, names)])
    roles.append("real")
    for name, own in stored_scores(evaluation).items():
        found = {} if own.fd_infinity is None else {names[0]: Estimate(own.fd_infinity)}
        rows.append([f"their reconstructions by '{name}'", "0", *_cells(found, names)])
        roles.append("real")
    return Table(
        columns,
        rows,
        title="Scores",
        caption=f"Scores against {scorer.real_count} training images; in brackets 95 % intervals "
        f"over draws of the samples. FD\N{INFINITY} is extrapolated to infinitely many samples; FD "
        "is the distance of these samples, and larger. Recall, coverage and class TV depend on the "
        f"number of images and are computed at {scorer.count}, for samples and test images alike. "
        + _features_sentence(scorer),
        roles=roles,
    )


def _cells(scores: Mapping[str, Estimate], names: Sequence[str]) -> list[str]:
    return [
        stat_text(c, _stat(scores[c]), _plain_name(c) in _WITH_INTERVAL) if c in scores else ""
        for c in names
    ]


def _classes(dataset: Dataset, scorer: Scorer, scored: Sequence[ScoredRun]) -> ClassChart:
    chosen = [scored[0], *_students(scored)]
    return ClassChart(
        list(dataset.class_names),
        list(scorer.real.histogram if scorer.real.histogram is not None else []),
        {s.run.label: list(class_histogram(s.classes, dataset.num_classes)) for s in chosen},
        title="Classes of the samples",
        caption="Share of each class among samples and real images; the classifier predicts the "
        "class of a sample.",
    )


def _curves(plans: Sequence[StagePlan]) -> list[Curve]:
    curves = []
    for plan in plans:
        # Rows of steps without an update of the student have no loss.
        rows = [r for r in read_metrics(plan.folder / "metrics.jsonl") if "loss" in r]
        curves.append(Curve(plan.name, [r["step"] for r in rows], [r["loss"] for r in rows]))
    return curves


def _provenance(evaluation: Evaluation, scorer: Scorer | None) -> dict[str, object]:
    dataset = evaluation.dataset
    facts: dict[str, object] = {
        "machine": machine_string(),
        "jax": jax.__version__,
        "data": dataset.provenance,
        "seed": evaluation.settings.seed,
        "training images": len(dataset),
    }
    if scorer is not None:
        facts["feature network"] = f"{scorer.name}, weights {scorer.digest}"
        for name, share in scorer.others.items():
            facts[f"classifier '{name}'"] = f"accuracy {share:.1%} on the test images"
    return facts
