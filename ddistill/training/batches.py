"""Reads batches and places them on the devices."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Int

from ddistill.data import Dataset, batch_indices, read_ahead
from ddistill.planning.plan import StagePlan
from ddistill.runtime.hosts import several
from ddistill.runtime.sharding import BATCH_AXES, Layout, place
from ddistill.training.rounds import split


class BatchReader:
    """Batches of a stage: batch s depends on (seed, s) alone, and not on the devices.

    A data set in memory is placed on the devices once, and a batch is a list of indices. A thread
    reads ahead from a larger data set; every process reads the examples of its own devices. Every
    student has a batch of its own, of the examples that it owns (`student_rows`). An objective that
    learns from noise alone is given labels and no images, and no images are read.

    Attributes:
      resident: whether the data set lies on the devices, or no images are read.
      hflip: whether training mirrors images at random.
      images: `[N, H, W, C]` on the devices where the data set lies there, else None.
      conditions: `[N]` class ids on the devices; with `texts` the pair of them and of the captions'
        token ids.
    """

    def __init__(
        self,
        dataset: Dataset,
        students: Sequence[tuple[int, np.ndarray]],
        batch: int,
        layout: Layout,
        images: bool = True,
        texts: bool = False,
    ):
        self._dataset, self._batch, self._layout = dataset, batch, layout
        self._students = students
        self.hflip = dataset.hflip
        self.resident = not images or isinstance(dataset.images, np.ndarray)
        kept = images and self.resident
        self.images = place(dataset.images, layout.whole()) if kept else None
        given = (dataset.labels, dataset.conditions) if texts else dataset.labels
        self.conditions = place(given, layout.whole())

    def _indices(self, step: int, count: int) -> np.ndarray:
        chosen = [
            [rows[batch_indices(seed, s, self._batch, len(rows))] for seed, rows in self._students]
            for s in range(step, step + count)
        ]
        indices = np.array(chosen, np.int32)
        return indices if self._layout.students else indices[:, 0]

    def _load(self, step: int, count: int) -> tuple[list, list[np.ndarray]]:
        indices = split(self._layout, self._indices(step, count), axis=1)
        images = [self.images if self.resident else self._read(own) for own in indices]
        return images, indices

    def _read(self, indices: np.ndarray) -> np.ndarray | jax.Array:
        if not several():
            images = self._dataset.take(indices.reshape(-1))
            return images.reshape(*indices.shape, *images.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            own = indices[index[: indices.ndim]]
            images = self._dataset.take(own.reshape(-1))
            return images.reshape(*own.shape, *images.shape[1:])

        stacked = self._layout.one_round().students
        axes = [None, "student", BATCH_AXES] if stacked else [None, BATCH_AXES]
        spread = NamedSharding(self._layout.mesh, PartitionSpec(*axes))
        shape = (*indices.shape, *self._dataset.images.shape[1:])
        return jax.make_array_from_callback(shape, spread, part)

    def batches(self, spans: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int, list, list]]:
        """Yields (step, count, images, indices) for spans of steps; the last two by round."""
        return read_ahead(lambda span: (*span, *self._load(*span)), spans)


def student_rows(
    dataset: Dataset, plan: StagePlan, groups: Int[np.ndarray, " N"] | None = None
) -> list[tuple[int, np.ndarray]]:
    """The seed of the batches of every student, and the indices of the examples that it owns.

    Args:
      dataset: the data of the stage.
      plan: the stage.
      groups: `[N]`, for a partition by text, the group of every caption.
    """
    if groups is None or plan.partition is None:
        return [(m.data_seed, _of_classes(dataset, m.classes)) for m in plan.students]
    rows = {
        int(k): np.flatnonzero(groups == g)
        for g in range(plan.partition.groups)
        for k in plan.partition.within(g)[0]
    }
    return [(m.data_seed, rows[k]) for k, m in enumerate(plan.students)]


def _of_classes(dataset: Dataset, classes: tuple[int, ...] | None) -> np.ndarray:
    """Indices of the images of these classes, or of all images."""
    if classes is None:
        return np.arange(len(dataset))
    return np.flatnonzero(np.isin(dataset.labels, classes))


def spans(start: int, end: int, size: int, borders: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Cuts start .. end into (step, count) of at most `size` that cross no multiple of a border."""
    step = start
    while step < end:
        stop = min([step + size, end] + [(step // b + 1) * b for b in borders])
        yield step, stop - step
        step = stop
