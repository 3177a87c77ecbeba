"""Many images, decoded by threads: kept in memory when they are few, else read on use."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from absl import logging

from ddistill.data.decode import ImageSpec, decode
from ddistill.data.memo import Memo
from ddistill.errors import DataError
from ddistill.runtime.schemas import TEXT, WHOLE, Schema, list_of

Shape = tuple[int, int, int]
# Images a task: a future costs about as much as a small image.
CHUNK = 32
# Sets for which the check of a lazy set takes long enough to be worth a line.
WORTH_SAYING = 20_000


@dataclass(frozen=True)
class Source:
    """Images by number.

    Attributes:
      read: gives uint8 [H, W, C] of image i, or raises `DataError` naming it.
      count: how many there are.
      name: image i in messages.
      shape: (H, W, C) of every image, or None when that is not known before reading.
      title: the set in messages.
      further: numbers of the files that hold further frames, which `read` notes.
    """

    read: Callable[[int], np.ndarray]
    count: int
    name: Callable[[int], str]
    shape: Shape | None
    title: str
    further: set[int] = field(default_factory=set)


def decoded(
    content: Callable[[int], str | bytes],
    count: int,
    name: Callable[[int], str],
    spec: ImageSpec,
    title: str,
) -> Source:
    """Images that are decoded from files.

    Args:
      content: path or bytes of file i.
      count: how many there are.
      name: file i in messages.
      spec: what the images become.
      title: the set in messages.
    """
    further: set[int] = set()

    def read(number: int) -> np.ndarray:
        try:
            return decode(content(number), spec, lambda: further.add(number))
        except ValueError as error:
            raise DataError(
                f"{name(number)} cannot be read: {error}. Repair or remove it, or set "
                "data.on_bad_image='skip' to leave such images out."
            ) from error

    shape = (spec.size, spec.size, spec.channels) if spec.size else None
    return Source(read, count, name, shape, title, further)


@dataclass(frozen=True)
class Checked:
    """Numbers of the images that cannot be read, and `digest` and `further` of the others."""

    bad: list[int]
    digest: str
    further: int = 0


@dataclass(frozen=True)
class Opened:
    """Images that are ready to be used.

    Attributes:
      images: [len(kept), H, W, C].
      kept: their numbers in the source.
      skipped: how many of the source cannot be read.
      digest: SHA-256 of the pixels in their order; "" where they have not all been looked at.
      further: how many files hold further frames, of which the first is the image.
    """

    images: "np.ndarray | LazyImages"
    kept: np.ndarray
    skipped: int
    digest: str = ""
    further: int = 0


class LazyImages:
    """Images that several threads decode on use.

    Args:
      source: where they come from; `shape` is set.
      kept: numbers of the images to use, in order.
      workers: threads.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, source: Source, kept: np.ndarray, workers: int):
        assert source.shape is not None
        self.shape: tuple[int, ...] = (len(kept), *source.shape)
        self._source, self._kept = source, kept
        self._pool = ThreadPoolExecutor(workers, "ddistill-decode")

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [len(indices), H, W, C]; the result does not depend on the number of threads."""
        numbers = self._kept[np.asarray(indices)]
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def fill(places: Sequence[int]) -> None:
            for place in places:
                out[place] = read_checked(self._source, int(numbers[place]))

        for _ in self._pool.map(fill, _chunks(len(numbers), 8)):
            pass
        return out


def open_images(
    source: Source,
    *,
    limit_mb: float,
    skip: bool,
    workers: int,
    memo: Memo | None = None,
    check: bool = True,
) -> Opened:
    """Decodes a source, or makes it ready to be decoded on demand.

    Args:
      source: the images.
      limit_mb: sets of at most so many MiB as uint8 are kept in memory.
      skip: leave out images that cannot be read, instead of failing.
      workers: threads; 0 takes two more than there are cores.
      memo: where the outcome of checking a lazy set is remembered.
      check: whether a lazy set is decoded once to find its bad images and its digest before it is
        used.

    Raises:
      DataError: an image cannot be read (unless `skip`), none can, or shapes differ.
    """
    workers = workers or usable_cores() + 2
    shape = source.shape or _first_shape(source, skip)
    source = replace(source, shape=shape)
    if source.count * int(np.prod(shape)) <= limit_mb * 2**20:
        return _read_all(source, skip, workers)
    found = look_at_all(source, skip, workers, memo) if check else Checked([], "")
    kept = _others(source, found.bad)
    images = LazyImages(source, kept, workers)
    return Opened(images, kept, len(found.bad), found.digest, found.further)


def read_checked(source: Source, number: int) -> np.ndarray:
    """Reads image `number` and holds it to the shape of the others."""
    image = source.read(number)
    if image.shape != source.shape:
        raise ShapeError(
            f"{source.name(number)} is {_size(image.shape)}, the first image is "
            f"{_size(source.shape)}. Set data.image_size to bring all images to one size."
        )
    return image


class ShapeError(DataError):
    """Images of unlike sizes: a matter of settings and so never skipped."""


# The facts of a set in the cache.
_CHECKED = Schema({"bad": list_of(WHOLE), "digest": TEXT, "further": WHOLE})


def look_at_all(source: Source, skip: bool, workers: int, memo: Memo | None) -> Checked:
    """Finds the images that cannot be read and the digest of the others, or takes both from `memo`.

    Training on a lazy set would otherwise meet its first broken file hours later, and leaving the
    file out then would make it another data set.
    """
    known = memo.recall(_CHECKED) if memo else None
    if known is not None and (skip or not known["bad"]):
        return Checked(known["bad"], known["digest"], known["further"])
    if source.count >= WORTH_SAYING:
        logging.warning("Checking %d images of %s once.", source.count, source.title)
    digests = _Digests(source.count)

    def check(numbers: Sequence[int]) -> list[int]:
        return [n for n in numbers if not _read(source, n, skip, digests)]

    bad = [n for found in _map_chunks(check, source.count, workers) for n in found]
    found = Checked(bad, digests.of(_others(source, bad)), len(source.further - set(bad)))
    if memo:
        memo.remember(vars(found))
    return found


class _Digests:
    """SHA-256 of each of `count` images, filled in by several threads."""

    def __init__(self, count: int):
        self._rows = np.zeros((count, 32), np.uint8)

    def put(self, number: int, image: np.ndarray) -> None:
        raw = hashlib.sha256(np.ascontiguousarray(image).data).digest()
        self._rows[number] = np.frombuffer(raw, np.uint8)

    def of(self, numbers: np.ndarray) -> str:
        """SHA-256 of the images `numbers` in this order."""
        return hashlib.sha256(self._rows[numbers].tobytes()).hexdigest()


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_all(source: Source, skip: bool, workers: int) -> Opened:
    assert source.shape is not None
    images = np.empty((source.count, *source.shape), np.uint8)
    digests = _Digests(source.count)

    def fill(numbers: Sequence[int]) -> list[int]:
        return [n for n in numbers if not _read(source, n, skip, digests, images)]

    bad = [n for found in _map_chunks(fill, source.count, workers) for n in found]
    kept = _others(source, bad)
    if bad:
        # In place: a second copy of the set may not fit.
        for place, number in enumerate(kept):
            images[place] = images[number]
        images = images[: len(kept)]
    return Opened(images, kept, len(bad), digests.of(kept), len(source.further - set(bad)))


def _read(
    source: Source,
    number: int,
    skip: bool,
    digests: _Digests,
    images: np.ndarray | None = None,
) -> bool:
    """Reads image `number`, into `images` if there are any; False where it is bad and skipped."""
    try:
        image = read_checked(source, number)
    except DataError as error:
        if not skip or isinstance(error, ShapeError):
            raise
        return False
    digests.put(number, image)
    if images is not None:
        images[number] = image
    return True


def _others(source: Source, bad: Sequence[int]) -> np.ndarray:
    """The numbers of the images that can be read, of which there must be some."""
    kept = np.setdiff1d(np.arange(source.count), np.asarray(bad, np.int64))
    if not len(kept):
        raise _none_left(source)
    return kept


def _first_shape(source: Source, skip: bool) -> Shape:
    """Shape of the first image that can be read."""
    for number in range(source.count):
        try:
            height, width, channels = source.read(number).shape
        except DataError:
            if not skip:
                raise
            continue
        return height, width, channels
    raise _none_left(source)


def _none_left(source: Source) -> DataError:
    return DataError(f"None of the {source.count} images of {source.title} can be read.")


def _map_chunks(
    work: Callable[[Sequence[int]], list[int]], count: int, workers: int
) -> Iterator[list[int]]:
    """`work` on 0 .. count - 1 by threads, results in order; the first failure ends it."""
    pool = ThreadPoolExecutor(workers, "ddistill-open")
    try:
        yield from pool.map(work, _chunks(count, CHUNK))
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(count: int, size: int) -> Iterable[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _size(shape: Sequence[int] | None) -> str:
    return "x".join(str(n) for n in shape or ())
