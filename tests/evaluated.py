"""Evaluations of a trained run, with what they say and draw, and a network that tells."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from runs import Notes

from ddistill import data
from ddistill.diffusion import Prediction
from ddistill.evaluation import evaluate_run, sampling
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.report import sections
from ddistill.evaluation.sampling_plan import SamplerRun, planned_runs
from ddistill.planning.plan import StagePlan
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import Settings
from ddistill.training.trained import Networks


class Run(NamedTuple):
    """A trained run, and the evaluations of it."""

    settings: Settings
    plans: list[StagePlan]
    train: data.Dataset

    def with_evaluation(self, **changes: Any) -> Settings:
        evaluation = dataclasses.replace(self.settings.evaluation, **changes)
        return dataclasses.replace(self.settings, evaluation=evaluation)

    def sampler_runs(self, **changes: Any) -> dict[str, SamplerRun]:
        runs = planned_runs(self.with_evaluation(**changes), self.plans)
        return {run.key: run for run in runs}

    def evaluation(
        self, folder: Path, reporter: Notes, stop: StopRequest, **changes: Any
    ) -> Evaluation:
        return Evaluation(
            settings=self.with_evaluation(**changes),
            plans=self.plans,
            dataset=self.train,
            networks=Networks(),
            workdir=folder,
            reporter=reporter,
            stop=stop,
            command="ours",
        )

    def evaluate(
        self, folder: Path, stop: StopRequest | None = None, *, report: bool = False, **changes: Any
    ) -> tuple[list[Row], list[str], list[str]]:
        """Returns the rows, what was said and the keys of the batches that were drawn."""
        notes, drawn = Notes(), []
        stop = StopRequest() if stop is None else stop
        draw = sampling.draw

        def counted(run, network, settings, start, count, trajectory=False):
            if not trajectory:  # strips of the report are no samples
                drawn.append(run.key)
            return draw(run, network, settings, start, count, trajectory)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "draw", counted)
            if not report:
                page = folder / "report.html"
                patch.setattr(sections, "write_run_report", lambda *a: page.write_text(""))
            rows = evaluate_run.evaluate_run(self.evaluation(folder, notes, stop, **changes))
        return rows, notes.said, drawn


def images(folder: Path, key: str) -> np.ndarray:
    with np.load(folder / "samples" / f"{key}.npz") as file:
        return file["images"]


@struct.dataclass
class Telling:
    """A network whose x0 is what it is told, "time" or "cond", everywhere in the image."""

    what: str = struct.field(pytree_node=False)

    def __call__(self, z, level, cond=None):
        told = jnp.asarray(level.time if self.what == "time" else cond, jnp.float32)
        value = jnp.broadcast_to(told, z.shape[:1]).reshape(-1, 1, 1, 1)
        return Prediction(jnp.broadcast_to(value, z.shape), jnp.zeros_like(z))
