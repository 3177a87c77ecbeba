"""Previews: a grid of samples of a stage that is still trained, always from the same noise."""

from pathlib import Path

import numpy as np

from ddistill.evaluation.figures.image_grids import Grid, ImageRow, grid_image, write_png
from ddistill.evaluation.sampling import draw
from ddistill.evaluation.sampling_plan import SamplerRun, short_runs, steps_in_words
from ddistill.networks.weights import Weights
from ddistill.planning.plan import StagePlan
from ddistill.runtime.loggers.protocol import Picture
from ddistill.samplers import get_sampler
from ddistill.settings import Settings
from ddistill.training.trained import bind

# A sampler of more steps than these is shortened: a preview costs a few train steps at most.
MOST_STEPS = 16
_IN_ROW = 8


class Previews:
    """Makes previews in WORKDIR/previews/STAGE/STEP.png.

    The images are the first `evaluation.grid_images` of the evaluation's noise bank, so that
    previews of all steps and the final grids show the same images. Nothing but the weights changes
    between two previews, and a resumed training makes the previews that it would have made.
    """

    def __init__(self, settings: Settings, workdir: Path):
        self._settings, self._folder = settings, workdir / "previews"

    def obstacle(self, plan: StagePlan) -> str:
        """Why a stage cannot be sampled; "" where it can."""
        trains = plan.objective.trains
        if trains.kind == "pairs":
            return "the stage trains no network"
        if plan.tokenizer is not None:
            return "its network reads texts, which are sampled when the training is complete"
        if plan.latent_source is not None:
            return "its network sees latents, which are decoded when the training is complete"
        if trains.kind == "denoiser":
            return ""
        return f"the stage trains {trains.called}, which generates no images"

    def path(self, plan: StagePlan, step: int) -> Path:
        """The file of a preview; files of a stage sort by step."""
        return self._folder / plan.name / f"{step:07d}.png"

    def exists(self, plan: StagePlan, step: int) -> bool:
        """Whether a preview is on disk."""
        return self.path(plan, step).is_file()

    def make(self, plan: StagePlan, weights: Weights, step: int) -> Picture:
        """Samples a stage and writes the picture; see `ddistill.training.previews.PreviewMaker`."""
        evaluation = self._settings.evaluation
        runs = short_runs(self._settings, plan, MOST_STEPS)
        # Full rows, and a single one for each student of a sweep.
        count = min(evaluation.grid_images, _IN_ROW)
        count *= 1 if runs[1:] else evaluation.grid_images // count
        rows = []
        for run in runs:
            network = bind(plan, weights, run.student)
            rows += _rows(run, np.asarray(draw(run, network, evaluation, 0, count)))
        picture = grid_image([Grid(f"{plan.name}, step {step}", rows)])
        path = self.path(plan, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, picture)
        return np.asarray(picture.convert("RGB"))


def _rows(run: SamplerRun, images: np.ndarray) -> list[ImageRow]:
    """Samples of one run, in rows of at most `_IN_ROW` images."""
    label = f"{get_sampler(run.sampler).label}, {steps_in_words(run.sampler, run.steps)}"
    note = run.student_plan.label if run.student is not None else ""
    parts = np.split(images, max(1, len(images) // _IN_ROW))
    return [ImageRow(label, parts[0], note), *(ImageRow("", part) for part in parts[1:])]
