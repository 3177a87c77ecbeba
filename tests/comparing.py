"""Runs made up for comparisons."""

import dataclasses
import json

import numpy as np

from ddistill.compare import load_run
from ddistill.evaluation.comparison import join
from ddistill.evaluation.comparison.checks import check_runs
from ddistill.evaluation.comparison.run_identity import teachers_of
from ddistill.evaluation.records.protocol import Protocol
from ddistill.evaluation.records.rows import Row, write_rows
from ddistill.evaluation.records.sampler_runs import SamplerRunRecord, write_sampler_runs

COUNT, SHAPE = 18, (8, 8, 1)
RESAMPLED = {"floor": 5, "count": 5, "subsets": 9, "splits": 2, "subset_seed": 0}
FULL = ("ddim", 16, "")
FEW = ("ddim", 4, "")
DASH = "\N{EN DASH}"


def run_config(name, seed, **changes):
    stages = {"teacher": {"steps": 10}, "student": {"steps": 3, "method": name}}
    config = {"name": name, "seed": seed, "stages": stages, "schedule": {"name": "cosine"}}
    return {**config, "evaluation": {"teacher": "teacher"}, **changes}


def make_run(
    folder, name="exp", seed=0, fds=None, config=None, protocol=None, times=1.0, **changes
):
    """Writes a finished run: `fds` has the FD of every (method, nfe, variant)."""
    fds = fds or {FULL: 1.0 + seed, FEW: 8.0 + seed, ("sfddm", 4, ""): 3.0 + seed}
    base = Protocol("net", f"h{seed}", "digits/train", 10, COUNT, "ddim", 0, 0.9, 1.0, 7, True)
    base = dataclasses.replace(base, **{**RESAMPLED, **(protocol or {})})
    floor = dataclasses.replace(base, samples=5, sampler="none", ema=None, clip=None)
    common = {"data": "digits", "seed": seed, "command": f"run {name}", "machine": "a machine"}
    known = (*common, "tuned_on", "warnings", "reference_teacher")
    common |= {k: v for k, v in changes.items() if k in known}
    rows = [
        Row(name, "real", common["data"], 0, 0, 0, seed, metric, value, floor.string(), 0.0, 0,
            common["command"], common["machine"], None, None,
            common.get("tuned_on", ()), common.get("warnings", ""))
        for metric, value in (("fd", 0.5), ("precision", 0.9), ("recall", 0.8))
    ]  # fmt: skip
    runs = []
    (folder / "samples").mkdir(parents=True)
    for i, ((method, nfe, variant), fd) in enumerate(fds.items()):
        student = method not in ("ddim", "dpm_solver_pp")
        key = f"{method}_{nfe}{variant}"
        text = dataclasses.replace(base, nfe=nfe).string()
        scores = {"fd": fd, "precision": 1 / (1 + fd), "recall": 0.5, "ms_per_image": times * nfe}
        for metric, value in scores.items():
            rows.append(
                Row(
                    experiment=f"{name}/{variant}" if variant else name,
                    method=method,
                    nfe=nfe,
                    students=int(student),
                    width=8,
                    metric=metric,
                    value=value,
                    protocol=text,
                    train_seconds=0.0,
                    teacher_calls=0,
                    **common,
                )
            )
        role = "student" if student else "reference_teacher" if nfe == 16 else "teacher"
        cost = (640 * nfe, 100 * nfe, (10.0 + seed) * nfe) if student else (0, 0, 0.0)
        runs.append(
            SamplerRunRecord(
                key, key, method, variant, nfe, 8, role, text, changes.get("classes", 0),
                1234, *cost
            )
        )  # fmt: skip
        images = np.full((COUNT, *SHAPE), -2.0 + 0.5 * i, np.float32)
        np.savez(folder / "samples" / f"{key}.npz", images=images, digest="d")
    write_rows(folder / "results.json", rows)
    write_sampler_runs(folder / "evaluation.json", "d", runs)
    (folder / "config.json").write_text(json.dumps(config or run_config(name, seed)))
    return folder


def compared(*folders):
    runs = [load_run(folder) for folder in folders]
    check_runs(runs)
    return join.join_runs(runs, teachers_of(runs))


def stat_of(made, name, nfe, metric="fd"):
    entry = next(e for e in made.names if made.names[e] == name)
    return made.scores[entry][nfe, metric]


def fds_of(made):
    """(label, nfe) -> mean FD and number of seeds."""
    return {
        (made.names[e], nfe): (stat.mean, stat.seeds)
        for e, cells in made.scores.items()
        for (nfe, metric), stat in cells.items()
        if metric == "fd"
    }
