"""The report of a run, from its scored samples: which pictures, tables and sentences it has."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from ddistill.data import Dataset
from ddistill.evaluation.figures.image_grids import Grid, ImageRow, Strip, Trajectory
from ddistill.evaluation.figures.plots import ClassChart, Curve, ScorePlot
from ddistill.evaluation.figures.tables import Table, line_of, number, range_of
from ddistill.evaluation.figures.tables import show as show_stat
from ddistill.evaluation.metrics.precision_recall import class_histogram
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.records.aggregate import Stat
from ddistill.evaluation.records.environment import machine_string
from ddistill.evaluation.records.names import METHODS, METRICS, main_distance
from ddistill.evaluation.records.notes import listed
from ddistill.evaluation.report.diagnostics import panel_grids
from ddistill.evaluation.report.report import Attempts, Highlight, Report, write_report
from ddistill.evaluation.report.students_table import students_table
from ddistill.evaluation.sampling import draw
from ddistill.evaluation.sampling_plan import Call
from ddistill.evaluation.scored import Scored, Scorer, protocol_of
from ddistill.planning.plan import StagePlan, complete_manifest
from ddistill.runtime.metrics_log import read_metrics
from ddistill.settings import Settings, to_plain
from ddistill.training.trained import Networks

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
# Those shown with their intervals: with all of them a table would be too wide to read.
_WITH_INTERVAL = ("fd_infinity", "fd", "precision", "recall")


def show(
    settings: Settings,
    plans: list[StagePlan],
    dataset: Dataset,
    networks: Networks,
    scorer: Scorer | None,
    scored: list[Scored],
    workdir: Path,
    command: str,
    warnings: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> Path:
    """Writes report.html and its pictures and returns its path.

    A part that cannot be made is replaced by the reason.

    Args:
      settings: the run's settings.
      plans: its stages.
      dataset: training images.
      networks: the trained networks.
      scorer: feature network and floor.
      scored: every call with samples and scores, the full teacher first.
      workdir: the run's folder.
      command: what to type to make it again.
      warnings: why the scores may mean little.
      say: is told of every part that could not be made.
    """
    attempt = Attempts()
    health = attempt(
        "Students", lambda: students_table(plans, networks, dataset, settings.evaluation)
    )
    samples = attempt("Samples", lambda: [_grid(settings, dataset, scored)])
    panels = attempt("Panels", lambda: panel_grids(plans, networks, settings.evaluation))
    strip = attempt("From noise to image", lambda: _strip(settings, networks, scored))
    curves = attempt("Training", lambda: _curves(plans))
    plot = classes = None
    if scorer:
        plot = attempt("Quality against network evaluations", lambda: _plot(scorer, scored))
        classes = attempt("Classes", lambda: _classes(dataset, scorer, scored))
    tables = [
        *([_scores(scorer, scored)] if scorer else []),
        *([health] if health else []),
        _costs(plans, scored),
    ]
    report = Report(
        title=settings.name,
        subtitle=_subtitle(dataset, scored),
        command=command,
        warnings=warnings,
        highlights=_highlights(scored) if scorer else [],
        grids=[*(samples or []), *(panels or [])],
        plot=plot,
        tables=tables,
        strip=strip,
        classes=classes,
        curves=curves or [],
        config=to_plain(_as_dict(settings)),
        protocols=_protocols(settings, scorer, scored),
        provenance=_provenance(settings, dataset, scorer),
        notes=[*_notes(plans), *_tuned(settings)],
        failed=attempt.failed,
    )
    return write_report(workdir, report, say=say)


def _as_dict(settings: Settings) -> dict:
    import dataclasses

    return dataclasses.asdict(settings)


def _students(scored: list[Scored]) -> list[Scored]:
    return [s for s in scored if s.call.role == "student"]


def _subtitle(dataset: Dataset, scored: list[Scored]) -> str:
    full, students = scored[0].call, _students(scored)
    counts = ", ".join(dict.fromkeys(str(s.call.nfe) for s in students))
    methods = ", ".join(dict.fromkeys(METHODS[s.call.method].label for s in students))
    return (
        f"A diffusion teacher trained on {dataset.name} and sampled in {full.nfe} network "
        f"evaluations, distilled by {methods} into students of {counts}."
    )


def _notes(plans: list[StagePlan]) -> list[str]:
    variants = [p for p in plans if p.settings.variant]
    if not variants:
        return []
    return ["Variants: " + ", ".join(f"{p.name} = {p.settings.variant}" for p in variants) + "."]


def _tuned(settings: Settings) -> list[str]:
    tuned = settings.evaluation.tuned_on
    if not tuned:
        return []
    fresh = "one of them" if settings.seed in tuned else "another one"
    seeds = f"seed{'s' if len(tuned) > 1 else ''} {listed(tuned)}"
    return [f"Settings tuned on {seeds}; this run has seed {settings.seed}, {fresh}."]


def _highlights(scored: list[Scored]) -> list[Highlight]:
    full, name = scored[0], main_distance(scored[0].scores)
    if name is None:
        return []
    label = METRICS[name].label

    def tile(s: Scored, note: str) -> Highlight:
        return Highlight(number(name, s.scores[name].value), f"{label} of {s.call.label}", note)

    def text(s: Scored) -> str:
        return show_stat(name, _stat(s.scores[name]))

    def ends(s: Scored) -> str:
        return text(s).partition(" ")[2]

    tiles = [tile(full, f"{ends(full)}, the teacher".lstrip(", "))]
    for s in _students(scored)[:3]:
        same = [t for t in scored if t.call.role == "teacher" and t.call.nfe == s.call.nfe]
        other = f"{same[0].call.label}: {text(same[0])}" if same else ""
        tiles.append(tile(s, "; ".join(part for part in (ends(s), other) if part)))
    return tiles


def _grid(settings: Settings, dataset: Dataset, scored: list[Scored]) -> Grid:
    """Full teacher, then for every student's step count the teacher's DDIM and the student."""
    n = settings.evaluation.grid_images
    students = _students(scored)
    counts = sorted({s.call.nfe for s in students}, reverse=True)
    rows = [_row(scored[0], n)]
    for count in counts:
        rows += [_row(s, n) for s in scored if s.call.role == "teacher" and s.call.nfe == count]
        rows += [_row(s, n) for s in students if s.call.nfe == count]
    real = dataset.take(np.linspace(0, len(dataset) - 1, n).astype(int))
    rows.append(ImageRow("real training images", np.asarray(real)))
    return Grid(
        "Same noise, same column",
        rows,
        "Every row starts from the same noise, so a column shows what distillation changed.",
    )


def _row(scored: Scored, count: int) -> ImageRow:
    images = np.clip(scored.samples.images[:count], -1, 1)
    name = main_distance(scored.scores)
    note = f"{METRICS[name].label} {number(name, scored.scores[name].value)}" if name else ""
    return ImageRow(scored.call.label, images, note)


def _plot(scorer: Scorer, scored: list[Scored]) -> ScorePlot | None:
    metric = main_distance(scored[0].scores)
    if metric is None:
        return None
    lines: dict[tuple[str, str], dict[int, Stat]] = {}
    for s in scored:
        role = "student" if s.call.role == "student" else "teacher"
        name = METHODS[s.call.method].label if role == "teacher" else s.call.series
        lines.setdefault((name, role), {})[s.call.nfe] = _stat(s.scores[metric])
    floor = scorer.floor.get(metric)
    return ScorePlot(
        [line_of(name, dict(sorted(own.items())), role) for (name, role), own in lines.items()],
        floor=None if floor is None else floor.value,
        floor_range=None if floor is None else range_of(_stat(floor)),
        floor_label="real test images",
        ylabel=f"{METRICS[metric].label} ({scorer.name})",
        caption=f"{_DISTANCES[metric]} Lower is better; bars are 95 % intervals over other "
        "samples. The floor is the distance of the test images, scored as if they had been "
        "sampled.",
    )


_DISTANCES = {
    "fd_infinity": "Frechet distance to the training images, extrapolated to infinitely many "
    "samples: distances of unequal numbers of samples do not compare.",
    "fd": "Frechet distance of these samples to the training images.",
}


def _stat(score: Estimate) -> Stat:
    return Stat(score.value, None, 1, score.low, score.high)


def _scores(scorer: Scorer, scored: list[Scored]) -> Table:
    columns = ["sampler", "NFE", *(METRICS[c].label for c in _COLUMNS)]
    rows, roles = [], []
    for s in scored:
        rows.append([s.call.label, str(s.call.nfe), *_cells(s.scores)])
        roles.append("student" if s.call.role == "student" else "teacher")
    rows.append([f"real test images ({scorer.floor_count})", "0", *_cells(scorer.floor)])
    roles.append("real")
    return Table(
        columns,
        rows,
        title="Scores",
        caption=f"Against {scorer.real_count} training images; in brackets 95 % intervals over "
        f"other samples. FD\N{INFINITY} is extrapolated to infinitely many samples; FD is that of "
        "these samples, and larger. Recall, coverage and class TV depend on the number of images "
        f"and are taken at {scorer.count} for samples and test images alike. The "
        f"classifier whose features are compared is right on {scorer.accuracy:.1%} of the test "
        "images.",
        roles=roles,
    )


def _cells(scores: Mapping[str, Estimate]) -> list[str]:
    return [
        show_stat(c, _stat(scores[c]), c in _WITH_INTERVAL) if c in scores else "" for c in _COLUMNS
    ]


def _costs(plans: list[StagePlan], scored: list[Scored]) -> Table:
    sampled: dict[str, list[Scored]] = {}
    for s in scored:
        sampled.setdefault(s.call.plan.name, []).append(s)
    columns = [
        "stage",
        "students",
        "parameters of one",
        "updates",
        "batch",
        "teacher calls",
        "seconds",
        "compile s",
        "ms/image",
    ]
    rows = []
    for plan in plans:
        m = complete_manifest(plan)
        speeds = sampled.get(plan.name, [])
        speed = ", ".join(
            f"{s.samples.ms_per_image:.2f} (NFE {s.call.nfe})"
            for s in speeds
            if s.call.role in ("full", "student")
        )
        rows.append(
            [
                plan.name,
                str(m.students),
                f"{m.parameters:,}",
                f"{m.steps:,}",
                str(m.batch_size),
                f"{m.teacher_calls:,}" if m.teacher_calls else "",
                f"{m.train_seconds:.0f}",
                f"{m.compile_seconds:.0f}",
                speed,
            ]
        )
    return Table(
        columns,
        rows,
        title="Cost",
        caption="Every stage by itself; a student that starts from another one owes that cost too. "
        "Updates and batch are those of each student. Teacher calls count forward passes of one "
        "image while distilling. Milliseconds an image are those of the fastest batch, compilation "
        "left out.",
    )


def _strip(settings: Settings, networks: Networks, scored: list[Scored]) -> Strip:
    """The full teacher, the teacher at a student's step count, and the students."""
    students = [s.call for s in _students(scored) if s.call.steps > 1] or [
        s.call for s in _students(scored)
    ]
    calls = [scored[0].call]
    if students:
        first = students[0]
        calls += [
            s.call for s in scored if s.call.role == "teacher" and s.call.steps == first.steps
        ][:1]
        calls.append(first)
    trajectories = [_trajectory(settings, networks, call) for call in calls]
    return Strip(
        "From noise to image",
        trajectories,
        caption="The state after each step, at equal noise levels in a column.",
    )


def _trajectory(settings: Settings, networks: Networks, call: Call) -> Trajectory:
    e = settings.evaluation
    frames = draw(call, networks(call.plan, call.student), e, 0, e.strip_images, trajectory=True)
    levels = [float(i) for i in call.grid[::-1]]
    return Trajectory(call.label, np.asarray(frames), levels)


def _classes(dataset: Dataset, scorer: Scorer, scored: list[Scored]) -> ClassChart:
    chosen = [scored[0], *_students(scored)]
    return ClassChart(
        list(dataset.class_names),
        list(scorer.real.histogram if scorer.real.histogram is not None else []),
        {s.call.label: list(class_histogram(s.classes, dataset.num_classes)) for s in chosen},
        title="Classes of the samples",
        caption="Share of each class, as the classifier sees it, among samples and real images.",
    )


def _curves(plans: list[StagePlan]) -> list[Curve]:
    curves = []
    for plan in plans:
        # A student that learns at some steps only has no loss in some of the rows.
        rows = [r for r in read_metrics(plan.folder / "metrics.jsonl") if "loss" in r]
        curves.append(Curve(plan.name, [r["step"] for r in rows], [r["loss"] for r in rows]))
    return curves


def _protocols(settings: Settings, scorer: Scorer | None, scored: list[Scored]):
    return [(s.call.label, protocol_of(settings, scorer, s.call).string()) for s in scored]


def _provenance(settings: Settings, dataset: Dataset, scorer: Scorer | None) -> dict[str, object]:
    facts: dict[str, object] = {
        "machine": machine_string(),
        "jax": jax.__version__,
        "data": dataset.provenance,
        "seed": settings.seed,
        "training images": len(dataset),
    }
    if scorer is not None:
        facts["feature network"] = f"{scorer.name}, weights {scorer.digest}"
        for name, share in scorer.others.items():
            facts[f"classifier '{name}'"] = f"right on {share:.1%} of the test images"
    return facts
