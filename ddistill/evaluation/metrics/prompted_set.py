"""Scores of images of a file of prompts: the CLIP score, and the FID of a published protocol."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ddistill.evaluation.metrics.clip_score import METRIC, clip_detector, clip_score
from ddistill.evaluation.metrics.clip_score import text_embeddings as embed
from ddistill.evaluation.metrics.geometry import shortest_side
from ddistill.evaluation.metrics.image_sets import ImageSet
from ddistill.evaluation.metrics.inception_metrics import MetricSettings
from ddistill.evaluation.metrics.protocol_sets import sample_fit, sample_set
from ddistill.evaluation.metrics.protocols import ImageProtocol, Prompts, prompted_parts
from ddistill.evaluation.metrics.reference_sets import Extraction, ReferenceSet
from ddistill.evaluation.metrics.score_set import SampleSet, SetScores, score_set
from ddistill.interop.clip import ClipModel


@dataclass(frozen=True, eq=False)
class PromptedScoring:
    """How images of prompts are scored.

    Attributes:
      prompts: the prompts.
      protocol: the protocol; None for a CLIP score of images as they are.
      clip: the CLIP model; None without a CLIP score, which needs a protocol.
      batch: images per batch of the CLIP model.
    """

    prompts: Prompts
    protocol: ImageProtocol | None
    clip: ClipModel | None
    batch: int = 64

    def images(self, path: str | os.PathLike) -> ImageSet:
        """The samples at a path, image i of prompt i; errors as of `sample_set`."""
        if self.protocol is not None:
            geometry = self.protocol.geometry
            # Files without loss are stored as the protocol says before they are resized.
            stored = f"jpeg{self.protocol.stored}-" if self.protocol.stored else ""
            name = f"{stored}{geometry}"
            return sample_set(path, self.prompts, sample_fit(self.protocol), geometry.side, name)
        assert self.clip is not None
        side = self.clip.vision.image_size

        def fit(image: Image.Image) -> np.ndarray:
            return shortest_side(np.asarray(image.convert("RGB")), side)

        return sample_set(path, self.prompts, fit, side, f"shortest-bicubic-{side}")

    def scores(
        self,
        images: ImageSet,
        reference: ReferenceSet | None,
        extraction: Extraction,
        metrics: Sequence[str],
        settings: MetricSettings,
    ) -> SetScores:
        """The scores of images.

        Args:
          images: the samples.
          reference: statistics of the real images; None without a FID.
          extraction: extracts features; its network is that of `reference`, if there is one.
          metrics, settings: of the scores against `reference`; no metrics for the FID alone.

        Raises:
          ConfigError: see `score_set`.
          Interrupted: a stop was requested.
        """
        fid = extraction.detector.text if reference else ""
        real = reference.text if reference else ""
        model = f"{self.clip.name}@{self.clip.sha256[:8]}" if self.clip else ""
        parts = prompted_parts(self.protocol, self.prompts, real, fid, model).string()
        if reference is None:
            protocol = f"samples={images.name}:{len(images)}@{images.digest[:8]} {parts}"
            made = SetScores(images.name, images.name, len(images), False, {}, protocol)
        else:
            full = len(self.prompts.texts)
            samples = SampleSet(images, extraction(images), origin=parts, full=full)
            made = score_set(samples, reference, extraction.detector, settings, metrics or ("fid",))
        return made if self.clip is None else self._with_clip(made, images, extraction)

    def _with_clip(self, made: SetScores, images: ImageSet, extraction: Extraction) -> SetScores:
        assert self.clip is not None
        own = dataclasses.replace(extraction, detector=clip_detector(self.clip, self.batch))
        texts = embed(self.clip, self.prompts.texts, self.protocol.prefix if self.protocol else "")
        found = clip_score(own(images).features(), texts)
        intervals = dict(made.intervals)
        if found.low is not None and found.high is not None:
            intervals[METRIC] = (found.low, found.high)
        return dataclasses.replace(
            made, scores={**made.scores, METRIC: found.value}, intervals=intervals
        )
