"""Which examples are in batch s, as a pure function of (seed, s): nothing to store, any resume."""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

T = TypeVar("T")
U = TypeVar("U")


def batch_indices(seed: int, step: int, batch: int, n: int) -> np.ndarray:
    """Indices of the examples of one batch.

    The batches laid end to end are permutations of the data set laid end to end: place
    p = step * batch + i is number p % n of epoch p // n. So every epoch visits every example once,
    and a batch may span epochs, also when it is larger than the data set.

    Args:
      seed: any int; equal seeds give equal batches.
      step: number of the batch, from 0.
      batch: examples in a batch, at least 1.
      n: examples in the data set, at least 1.

    Returns:
      int64 [batch], values 0 .. n-1.
    """
    if batch < 1 or n < 1 or step < 0:
        raise ValueError(f"step={step}, batch={batch}, n={n}: step >= 0 and the others >= 1.")
    places = step * batch + np.arange(batch, dtype=np.int64)
    epochs, offsets = np.divmod(places, n)
    out = np.empty(batch, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        inside = epochs == epoch
        out[inside] = _permutation(seed % 2**64, epoch, n)[offsets[inside]]
    return out


def read_ahead(read: Callable[[T], U], tasks: Iterable[T], ahead: int = 2) -> Iterator[U]:
    """Yields `read(task)` for every task in order, the next `ahead` of them read by a thread.

    The decoding of a lazy set overlaps the caller's work. The batches do not depend
    on `ahead`; an error in `read` is raised where its result would have been yielded.
    """
    with ThreadPoolExecutor(1, "ddistill-prefetch") as pool:
        waiting: list[Future] = []
        try:
            for task in tasks:
                waiting.append(pool.submit(read, task))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of n from the counter-based Philox generator, keyed by seed and epoch.

    Sorting its raw output, a stream that NumPy never changes, keeps batches the same across
    NumPy versions; `Generator.permutation` has no such guarantee.
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    permutation = np.argsort(raw, kind="stable")
    permutation.setflags(write=False)
    return permutation
