"""Scores of words: the share of pictures that show what a word of their caption asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from ddistill.data import Dataset
from ddistill.data.words import Word, chance
from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.metrics.resampling import Estimate, share_interval
from ddistill.evaluation.prompts import caption_rows
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.scored import ScoredRun
from ddistill.evaluation.scorer import Scorer


@dataclass(frozen=True, eq=False)
class Captioned:
    """Captions, and what is known of the pictures of them.

    Attributes:
      texts: the captions.
      labels: `[N]`, the classes of the data that they belong to.
      read: `[N]`, the classes that the classifier reads off the pictures; None without one.
    """

    texts: Sequence[str]
    labels: Int[np.ndarray, " N"]
    read: Int[np.ndarray, " N"] | None = None


def word_scores(
    words: Sequence[Word], pictures: Float[np.ndarray, "N H W C"], captioned: Captioned
) -> dict[str, Estimate]:
    """By metric the share of pictures that obey, of those with captions that have the word.

    Args:
      words: of the data set; words that only a classifier reads are left out without one.
      pictures: in [-1, 1].
      captioned: their captions.
    """
    shown = quantise(pictures).astype(np.float32) / 127.5 - 1
    found = {}
    for word in words:
        if word.read is None and captioned.read is None:
            continue
        asked = word.asked(captioned.texts)
        if not np.any(said := asked >= 0):
            continue
        read = captioned.read if word.read is None else word.read(shown, captioned.labels)
        assert read is not None
        found[word.metric] = share_interval((read == asked)[said])
    return found


def with_words(
    evaluation: Evaluation, scorer: Scorer | None, scored: Sequence[ScoredRun]
) -> list[ScoredRun]:
    """Adds the scores of words to the runs of networks that read texts."""
    dataset, e = evaluation.dataset, evaluation.settings.evaluation
    captions = dataset.texts.get("caption")
    if captions is None or not dataset.words:
        return list(scored)
    rows = caption_rows(e, len(dataset))
    rows = rows[np.arange(e.samples) % len(rows)]
    texts, labels = [captions[int(row)] for row in rows], np.asarray(dataset.labels)[rows]
    tells = scorer is not None and scorer.tells_classes

    def added(s: ScoredRun) -> ScoredRun:
        if s.run.plan.tokenizer is None:
            return s
        captioned = Captioned(texts, labels, s.classes if tells else None)
        own = word_scores(dataset.words, s.samples.images, captioned)
        return replace(s, scores={**s.scores, **own})

    return [added(s) for s in scored]


def with_word_floor(scorer: Scorer) -> Scorer:
    """The scorer with the scores of the test images and their captions in its floor."""
    test, captions = scorer.test, scorer.test.texts.get("caption")
    if captions is None or not test.words or scorer.classes is None:
        return scorer
    pictures = np.asarray(test.take(np.arange(len(test))))
    read = scorer.classes if scorer.tells_classes else None
    captioned = Captioned(captions, np.asarray(test.labels), read)
    return replace(scorer, floor={**scorer.floor, **word_scores(test.words, pictures, captioned)})


def chances(dataset: Dataset) -> Mapping[str, float]:
    """By metric the score of pictures that are given to captions of the data at random."""
    captions = dataset.texts.get("caption", ())
    return {word.metric: chance(word.asked(captions)) for word in dataset.words}


def words_line(scored: ScoredRun, by_chance: Mapping[str, float]) -> str:
    """The scores of words of a run with their levels of chance; "" without any."""
    parts = [
        f"{METRICS[name].label} {scored.scores[name].value:.1%} (chance {level:.1%})"
        for name, level in by_chance.items()
        if name in scored.scores
    ]
    return f"{scored.run.label}: {', '.join(parts)}" if parts else ""
