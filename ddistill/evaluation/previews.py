"""Previews: a grid of samples of a stage that is still trained, always from the same noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddistill.data import Dataset
from ddistill.evaluation.figures.image_grids import Grid, ImageRow, grid_image, write_png
from ddistill.evaluation.prompts import caption_rows, texts_of
from ddistill.evaluation.sampling import PictureSource
from ddistill.evaluation.sampling_plan import SamplerRun, short_runs, steps_in_words
from ddistill.networks.weights import Weights
from ddistill.planning.plan import StagePlan
from ddistill.runtime.loggers.protocol import Picture
from ddistill.samplers import get_sampler
from ddistill.settings import Settings
from ddistill.text import printable
from ddistill.training.trained import Networks, bind
from ddistill.typing import HostImages

# A sampler of more steps than these is shortened: a preview costs a few train steps at most.
MOST_STEPS = 16
_IN_ROW = 8


class Previews:
    """Makes previews in WORKDIR/previews/STAGE/STEP.png.

    The images are the first `evaluation.grid_images` of the evaluation's noise bank, so that
    previews of all steps and the final grids show the same images, of the same captions where
    networks read texts. Nothing but the weights changes between two previews, and a resumed
    training makes the previews that it would have made.
    """

    def __init__(
        self,
        settings: Settings,
        workdir: Path,
        networks: Networks | None = None,
        dataset: Dataset | None = None,
    ):
        """Samples nothing yet.

        Args:
          settings: of the run.
          workdir: its folder.
          networks: of its complete stages, for text encoders and decoders.
          dataset: the training data, for captions; None for a run without captions.
        """
        self._settings, self._folder = settings, workdir / "previews"
        self._networks = Networks() if networks is None else networks
        self._captions = None if dataset is None else dataset.tokens
        self._texts = () if dataset is None else dataset.texts.get("caption", ())

    def obstacle(self, plan: StagePlan) -> str:
        """Why a stage cannot be sampled; "" where it can."""
        trains = plan.objective.trains
        if trains.kind == "pairs":
            return "the stage trains no network"
        if plan.tokenizer is not None and self._captions is None:
            return "its network reads texts, and the data have no captions"
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
        samples = [self._sample(run, weights, count) for run in runs]
        picture = grid_image(self._grids(f"{plan.name}, step {step}", runs, samples))
        path = self.path(plan, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, picture)
        return np.asarray(picture.convert("RGB"))

    def _grids(
        self, title: str, runs: Sequence[SamplerRun], samples: Sequence[HostImages]
    ) -> list[Grid]:
        """All samples in one grid, or in grids of one row a run above their captions."""
        if runs[0].plan.tokenizer is None or not self._texts:
            rows = [row for run, images in zip(runs, samples) for row in _rows(run, images)]
            return [Grid(title, rows)]
        shown = caption_rows(self._settings.evaluation, len(self._texts))[: len(samples[0])]
        grids = []
        for part in np.array_split(np.arange(len(shown)), -(-len(shown) // _IN_ROW)):
            rows = [row for run, images in zip(runs, samples) for row in _rows(run, images[part])]
            texts = [printable(self._texts[int(i)]) for i in shown[part]]
            grids.append(Grid(title, rows, texts=texts))
        return grids

    def _sample(self, run: SamplerRun, weights: Weights, count: int) -> HostImages:
        """The first pictures of the noise bank."""
        evaluation, texts = self._settings.evaluation, None
        networks = self._networks.holding(run.plan, weights)  # for a text encoder that is learnt
        if run.plan.tokenizer is not None and self._captions is not None:
            shown = self._captions[caption_rows(evaluation, len(self._captions))]
            texts = texts_of(run.plan, networks, shown)
        network, decode = bind(run.plan, weights, run.student), networks.decoder(run.plan)
        return PictureSource(run, network, evaluation, texts, decode)(range(count))


def _rows(run: SamplerRun, images: np.ndarray) -> list[ImageRow]:
    """Samples of one run, in rows of at most `_IN_ROW` images."""
    label = f"{get_sampler(run.sampler).label}, {steps_in_words(run.sampler, run.steps)}"
    note = run.student_plan.label if run.student is not None else ""
    parts = np.split(images, max(1, len(images) // _IN_ROW))
    return [ImageRow(label, parts[0], note), *(ImageRow("", part) for part in parts[1:])]
