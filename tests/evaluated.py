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
from ddistill.evaluation import sampling
from ddistill.evaluation.evaluate import evaluate
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.report import sections
from ddistill.planning.plan import StagePlan
from ddistill.runtime.interrupt import StopRequest
from ddistill.settings import Settings


class Run(NamedTuple):
    """A trained run, and the evaluations of it."""

    settings: Settings
    plans: list[StagePlan]
    train: data.Dataset

    def with_evaluation(self, **changes: Any) -> Settings:
        evaluation = dataclasses.replace(self.settings.evaluation, **changes)
        return dataclasses.replace(self.settings, evaluation=evaluation)

    def calls(self, **changes: Any) -> dict[str, sampling.Call]:
        calls = sampling.planned_calls(self.with_evaluation(**changes), self.plans)
        return {call.key: call for call in calls}

    def evaluate(
        self, folder: Path, stop: StopRequest | None = None, *, report: bool = False, **changes: Any
    ) -> tuple[list[Row], list[str], list[str]]:
        """Returns the rows, what was said and the calls of which a batch was drawn."""
        notes, drawn = Notes(), []
        stop = StopRequest() if stop is None else stop
        settings = self.with_evaluation(**changes)
        draw = sampling.draw

        def counted(call, *args, **kwargs):
            drawn.append(call.key)
            return draw(call, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "draw", counted)
            if not report:
                patch.setattr(sections, "show", lambda *a: (folder / "report.html").write_text(""))
            rows = evaluate(settings, self.plans, self.train, folder, notes, stop, "ours")
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
