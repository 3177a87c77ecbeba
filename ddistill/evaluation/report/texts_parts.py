"""Parts of the report on networks that read texts: pictures above prompts, scores of prompts."""

from collections.abc import Mapping, Sequence

import numpy as np

from ddistill.evaluation.context import Evaluation
from ddistill.evaluation.figures.image_grids import Grid, ImageRow
from ddistill.evaluation.figures.tables import Table, number, stat_text
from ddistill.evaluation.metrics.protocols import protocol_named
from ddistill.evaluation.metrics.resampling import Estimate
from ddistill.evaluation.prompts import caption_rows
from ddistill.evaluation.records.aggregate import Stat
from ddistill.evaluation.records.names import METRICS
from ddistill.evaluation.report.report import Part
from ddistill.evaluation.report.teacher_parts import role_of
from ddistill.evaluation.scored import ScoredRun, comparable
from ddistill.evaluation.scorer import Scorer
from ddistill.evaluation.words import chances
from ddistill.text import printable

# Prompts of the picture, and those of one grid.
SHOWN, IN_GRID = 16, 8


def prompt_parts(evaluation: Evaluation, scored: Sequence[ScoredRun]) -> list[Part]:
    """Samples of the compared runs above their prompts; none for networks that read no texts.

    Args:
      evaluation: the run.
      scored: all scored runs, the reference teacher first.
    """
    dataset, e = evaluation.dataset, evaluation.settings.evaluation
    captions = dataset.texts.get("caption")
    runs = [s for s in comparable(scored) if s.run.plan.tokenizer is not None]
    if captions is None or not runs:
        return []
    rows = caption_rows(e, len(dataset))
    texts = [captions[int(row)] for row in rows]
    first = {text: i for i, text in reversed(list(enumerate(texts)))}  # of equal prompts the first
    different = sorted(first.values())
    count = min(SHOWN, len(different))
    chosen = np.asarray(different)[np.arange(count) * len(different) // count]
    grids: list[Grid] = []
    for part in np.array_split(chosen, -(-count // IN_GRID)):
        shown = [ImageRow(s.run.label, np.clip(s.samples.images[part], -1, 1)) for s in runs]
        title = "Prompts" if not grids else "More prompts"
        grids.append(Grid(title, shown, texts=[printable(texts[i]) for i in part]))
    return [Part("Prompts", grids, "prompts.png")]


def word_parts(
    evaluation: Evaluation, scorer: Scorer | None, scored: Sequence[ScoredRun]
) -> list[Part]:
    """A table of the scores of words beside their levels of chance; none without such scores.

    Args:
      evaluation: the run.
      scorer: gives the scores of the test images, if there is one.
      scored: all scored runs, the reference teacher first.
    """
    by_chance = chances(evaluation.dataset)
    names = [name for name in by_chance if any(name in s.scores for s in scored)]
    if not names:
        return []
    body = [
        [s.run.label, str(s.run.nfe), f"{s.run.guidance:g}", *_cells(s.scores, names)]
        for s in scored
    ]
    roles = [role_of(s.run) for s in scored]
    if scorer is not None and any(name in scorer.floor for name in names):
        body.append(["real test images", "0", "", *_cells(scorer.floor, names)])
        roles.append("real")
    body.append(["chance", "0", "", *(number(name, by_chance[name]) for name in names)])
    roles.append("real")
    table = Table(
        ["sampler", "NFE", "guidance", *(METRICS[name].label for name in names)],
        body,
        title="Words of the captions",
        caption="Share of the samples that show what a word of their caption asks for, of the "
        "samples with a caption that has the word; in brackets 95 % intervals. Chance is the share "
        "for pictures that are given to captions of the data at random.",
        roles=roles,
    )
    return [Part(table.title, table)]


def protocol_parts(evaluation: Evaluation, scored: Sequence[ScoredRun]) -> list[Part]:
    """A table of FID and CLIP score under the published protocol of the run; none without one.

    Args:
      evaluation: the run.
      scored: all scored runs, the reference teacher first.
    """
    names = [n for n in ("fid_protocol", "clip_score") if any(n in s.scores for s in scored)]
    chosen = [s for s in scored if any(name in s.scores for name in names)]
    if not chosen or evaluation.prompted is None:
        return []
    parts = evaluation.prompted
    protocol = protocol_named(parts.protocol, "config.evaluation.protocol.name")
    prefix = f"prompts begin with {protocol.prefix.strip()!r}" if protocol.prefix else "no prefix"
    caption = (
        f"{protocol.prompts:,} samples of the prompts {parts.prompts}; in brackets 95 % intervals "
        f"over draws of the samples. Geometry {parts.fit}. "
    )
    if "fid_protocol" in names:
        caption += f"FID: distance to {parts.real} in {parts.fid}. "
    if "clip_score" in names:
        caption += (
            f"CLIP score: mean cosine of image and prompt by {parts.clip_model} ({prefix}); "
            f"published scores are of {protocol.clip}. "
        )
    table = Table(
        ["sampler", "NFE", "guidance", *(METRICS[name].label for name in names)],
        [
            [s.run.label, str(s.run.nfe), f"{s.run.guidance:g}", *_cells(s.scores, names)]
            for s in chosen
        ],
        title=f"Published protocol {protocol.name}",
        caption=f"{caption}Source: {protocol.source}.",
        roles=[role_of(s.run) for s in chosen],
    )
    return [Part(table.title, table)]


def _cells(scores: Mapping[str, Estimate], names: Sequence[str]) -> list[str]:
    found = [scores.get(name) for name in names]
    return [
        stat_text(name, Stat(own.value, None, 1, own.low, own.high)) if own else ""
        for name, own in zip(names, found)
    ]
