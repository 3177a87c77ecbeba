"""LPIPS to the images of the reference teacher, where the user gives weights."""

from collections.abc import Sequence
from dataclasses import replace

from ddistill.evaluation.metrics.lpips import Lpips
from ddistill.evaluation.metrics.resampling import ratio_of_means
from ddistill.evaluation.records.rows import Row
from ddistill.evaluation.scored import ScoredRun, comparable


def with_lpips(scored: Sequence[ScoredRun], lpips: Lpips, batch: int) -> list[ScoredRun]:
    """Adds the mean LPIPS to the reference teacher's images from the same noise.

    Only the runs of `comparable` get it, because the networks of LPIPS are large.

    Args:
      scored: all scored runs, the reference teacher first.
      lpips: the network.
      batch: images per batch.
    """
    teacher = scored[0].samples.images
    chosen = {s.run.key for s in comparable(scored)[1:]}

    def added(s: ScoredRun) -> ScoredRun:
        if s.run.key not in chosen:
            return s
        found = ratio_of_means(lpips.distances(s.samples.images, teacher, batch))
        return replace(s, scores={**s.scores, lpips.metric: found})

    return [added(s) for s in scored]


def with_weights(rows: Sequence[Row], lpips: Lpips) -> list[Row]:
    """Adds the hash of the weights to the reference of the rows of LPIPS."""
    return [
        replace(row, reference_teacher=f"{row.reference_teacher} lpips={lpips.digest[:8]}")
        if row.metric == lpips.metric
        else row
        for row in rows
    ]
