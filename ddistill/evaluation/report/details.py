"""What the report says about its numbers and files: metrics, links, commands."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.records.environment import portable
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.report.report import Files
from ddistill.evaluation.scored import ScoredRun
from ddistill.evaluation.scorer import Scorer
from ddistill.networks.dit import DiT
from ddistill.networks.unet import UNet
from ddistill.planning.plan import StagePlan, complete_manifest
from ddistill.text import printable

# Samplers of which the update rule is that of diffusers' `DDIMScheduler`.
_DIFFUSERS = ("ddim",)


def meanings(scorer: Scorer | None, scored: Sequence[ScoredRun]) -> list[tuple[str, str]]:
    """(label, what it measures) of every metric of the run, from `names.METRICS`."""
    measured = {name for s in scored for name in s.scores}
    if scorer is not None:
        measured |= set(scorer.floor) | {"accuracy"}
    better = {"lower": " Lower is better.", "higher": " Higher is better.", "": ""}
    return [
        ("NFE", "Network evaluations per image. Classifier-free guidance takes two in a step."),
        *(
            (metric.label, metric.meaning + better[metric.better])
            for name, metric in METRICS.items()
            if name in measured
        ),
    ]


def meanings_note(scorer: Scorer | None) -> str:
    """The features behind the metrics that need features."""
    if scorer is None:
        return ""
    trained = (
        "which this run did not train"
        if scorer.fixed
        else f"the classifier of this run, trained on {scorer.data}"
    )
    return f"Features are the hidden layer of {scorer.name} (weights {scorer.digest}), {trained}."


def files_of(evaluation: Evaluation, scored: Sequence[ScoredRun]) -> Files:
    """Links to the files of a run, and the commands that load and export its students."""
    workdir = evaluation.workdir
    texts = {
        "results.json": "every number of this page with interval and protocol",
        "metrics.jsonl": "the training logs of all stages",
        "config.json": "all settings",
    }
    items = [(name, name, text) for name, text in texts.items() if (workdir / name).exists()]
    items += [
        (f"samples/{s.run.key}.npz", f"samples/{s.run.key}.npz", f"samples of {s.run.label}")
        for s in scored
    ]
    items += [_checkpoint(plan, workdir) for plan in evaluation.plans]
    return Files(items, commands_of(evaluation, scored))


def _checkpoint(plan: StagePlan, workdir: Path) -> tuple[str, str, str]:
    """The folder of a stage; without a link if it is elsewhere, because a page can be copied."""
    manifest = complete_manifest(plan)
    path = os.path.relpath(plan.folder, workdir)
    near = not os.path.isabs(path) and path.count("..") <= 1
    name = path if near else plan.folder.name
    text = f"checkpoints of stage '{plan.name}', {manifest.steps:,} steps"
    return (path if near else "", name, text)


def commands_of(evaluation: Evaluation, scored: Sequence[ScoredRun]) -> list[tuple[str, str]]:
    """(heading, commands) to sample, export and compare this run."""
    run = portable(str(evaluation.workdir))
    students = [s.run for s in scored if s.run.role == "student"]
    last = students[-1] if students else scored[0].run
    shared = {plan.folder.parent for plan in evaluation.plans if plan.settings.shared}
    cache = next((c for c in shared if c != evaluation.workdir.parent / "shared"), None)
    python_cache = f", cache={portable(str(cache))!r}" if cache else ""
    flag = f" --cache={shlex.quote(portable(str(cache)))}" if cache else ""
    counts = ", ".join(str(n) for n in sorted({r.nfe for r in students} or {last.nfe}))
    seed, shape = evaluation.settings.evaluation.noise_seed, evaluation.dataset.image_shape
    stage = "" if students else f", stage={last.plan.name!r}"
    given = f"16, nfe={last.nfe}, seed={seed}"
    if last.plan.tokenizer is not None:
        captions = evaluation.dataset.texts.get("caption", ())
        given += f", prompts={[printable(text) for text in captions[:1]] or ['a text']!r}"
    python = (
        "import ddistill\n\n"
        f"run = ddistill.load({run!r}{stage}{python_cache})\n"
        f"images = run.sample({given})"
        f"  # [16, {', '.join(map(str, shape))}] uint8, the images of this page; nfe: {counts}"
    )
    forms = [f for f in ("diffusers", "stablehlo", "safetensors")]
    network = isinstance(last.plan.module, UNet | DiT)  # those that diffusers has too
    if last.sampler not in _DIFFUSERS or last.guidance != 1.0 or last.inputs or not network:
        forms.remove("diffusers")
    out = f"exports/{last.plan.name}"
    export = [
        f"python -m ddistill.export --to={form} --stage={shlex.quote(last.plan.name)} "
        f"--nfe={last.nfe}{flag} "
        f"{shlex.quote(run)} {shlex.quote(f'{out}-{form}')}"
        for form in forms
    ]
    others = [
        f"python -m ddistill.compare {shlex.quote(run)} OTHER_RUN",
        f"python -m ddistill.record {shlex.quote(run)}",
    ]
    found = [("Sample in Python", python), ("Export", "\n".join(export))]
    return [*found, ("Compare with other runs, record the numbers", "\n".join(others))]
