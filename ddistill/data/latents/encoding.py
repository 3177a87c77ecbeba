"""The arrays of one shard: decodes images, encodes them in batches, tokenizes captions."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ddistill.data.batches import read_ahead
from ddistill.data.captions.rows import IMAGE, CaptionSource, Problem, Row
from ddistill.data.decode import ImageSpec, decode
from ddistill.data.encodings import EncoderFacts
from ddistill.data.latents.pipeline import LatentPipeline, TextStates
from ddistill.data.latents.posterior import draw_latents
from ddistill.data.latents.records import (
    FLIPPED,
    LABELS,
    LATENTS,
    MOMENTS,
    PIXELS,
    POOLED,
    STATES,
    TOKENS,
    SetSpec,
)
from ddistill.data.latents.shards import pack_texts
from ddistill.errors import DataError
from ddistill.runtime.rng import stream_key
from ddistill.typing import AnyArray

_draw = jax.jit(draw_latents, static_argnums=2)
# Ids up to this number are stored in 16 bits.
_SMALL_VOCABULARY = 2**16


class Encoded(NamedTuple):
    """The rows of a shard.

    Attributes:
      arrays: by name, with one row for every image that can be read.
      problems: the images that cannot be read.
    """

    arrays: dict[str, np.ndarray]
    problems: list[Problem]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Makes the arrays of ranges of rows.

    A row depends neither on the rows of its batch nor on its place in it, as long as the functions
    of the pipeline compute every row on its own.

    Attributes:
      spec: what is stored.
      pipeline: the networks.
      batch_size: images that are encoded together; the last ones are filled up with black images.
      pool: threads that decode.
    """

    spec: SetSpec
    pipeline: LatentPipeline
    batch_size: int
    pool: ThreadPoolExecutor

    def shard(self, split: str, source: CaptionSource, start: int) -> Encoded:
        """The rows of a source from `start` on that are one shard.

        Raises:
          DataError: the pipeline gives another shape than its facts say, or values that are not
            finite in 16 bits.
        """
        rows = source.rows[start : start + self.spec.shard_rows(split)]
        arrays: dict[str, np.ndarray] = {}
        problems: list[Problem] = []
        kept: Sequence[int] = range(len(rows))
        if source.content is not None:
            kept, problems, arrays = self._images(split, source, rows, start)
        chosen = [rows[i] for i in kept]
        arrays |= self.texts([row.caption for row in chosen])
        arrays[LABELS] = np.array([row.label for row in chosen], np.int32)
        return Encoded(arrays, problems)

    def texts(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Captions, their token ids, and the states of a text encoder."""
        facts = self.pipeline.tokenizer
        ids = _tokenize(self.pipeline, captions)
        dtype = np.uint16 if facts.vocabulary <= _SMALL_VOCABULARY else np.int32
        arrays = {**pack_texts(captions), TOKENS: ids.astype(dtype)}
        encoder = self.pipeline.text_encoder
        if encoder is not None:
            found = [
                TextStates(*(_half(x, captions[at : at + self.batch_size]) for x in states))
                for at, states in _in_batches(encoder.encode, ids, self.batch_size)
            ]
            if found:
                arrays[POOLED] = np.concatenate([f.pooled for f in found])
                if self.spec.states:
                    arrays[STATES] = np.concatenate([f.states for f in found])
        return arrays

    def _images(
        self, split: str, source: CaptionSource, rows: Sequence[Row], start: int
    ) -> tuple[Sequence[int], list[Problem], dict[str, np.ndarray]]:
        """Which rows can be read, the problems of the others, and the arrays of the images."""
        kept: list[int] = []
        problems: list[Problem] = []
        # Filled from the front, so that a shard is in memory once.
        arrays: dict[str, np.ndarray] = {}
        size = self.batch_size
        spans = [range(i, min(i + size, len(rows))) for i in range(0, len(rows), size)]
        decoded = read_ahead(lambda span: self._decode(source, [rows[i] for i in span]), spans)
        for span, found in zip(spans, decoded):
            good = [i for i, x in zip(span, found) if isinstance(x, np.ndarray)]
            images = [x for x in found if isinstance(x, np.ndarray)]
            problems += [
                Problem(IMAGE, rows[i].name, x) for i, x in zip(span, found) if isinstance(x, str)
            ]
            if good:
                numbers = np.array([start + i for i in good])
                made = self._encode(split, np.stack(images), numbers, [rows[i].name for i in good])
                for name, part in made.items():
                    whole = arrays.setdefault(
                        name, np.empty((len(rows), *part.shape[1:]), part.dtype)
                    )
                    whole[len(kept) : len(kept) + len(good)] = part
            kept += good
        if not kept:
            return kept, problems, self._empty(split)
        return kept, problems, {name: array[: len(kept)] for name, array in arrays.items()}

    def _decode(self, source: CaptionSource, rows: Sequence[Row]) -> list[np.ndarray | str]:
        """The images of rows, or the reason why one cannot be read."""
        wanted = ImageSpec(self.spec.image_size, self.spec.encoder.image_channels)
        content = source.content
        assert content is not None

        def read(row: Row) -> np.ndarray | str:
            try:
                return decode(content(row), wanted)
            except OSError as error:
                return f"cannot be read: {error.strerror or error}"
            except ValueError as error:
                return f"cannot be read: {error}"

        return list(self.pool.map(read, rows))

    def _encode(
        self, split: str, images: np.ndarray, numbers: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        spec = self.spec
        stored = LATENTS if spec.stored_encoder.kind == LATENTS else MOMENTS
        views = {stored: images}
        if spec.flip:
            views[FLIPPED] = images[:, :, ::-1]
        arrays = {}
        for name, view in views.items():
            found = np.asarray(self.pipeline.encode(_filled(view, self.batch_size)))
            found = self._checked(found)
            if spec.sampled:
                keys = _keys(f"{split} {name}", spec.seed, _filled(numbers, self.batch_size))
                found = np.asarray(_draw(keys, found, _unscaled(spec)))
            arrays[name] = _half(found[: len(images)], names)
        if self.spec.with_pixels(split):
            arrays[PIXELS] = images
        return arrays

    def _checked(self, found: np.ndarray) -> np.ndarray:
        expected = (self.batch_size, *_stored_shape(self.spec))
        if found.shape != expected:
            raise DataError(
                f"The encoder {self.spec.encoder.name} gives {found.shape} for {self.batch_size} "
                f"images of {self.spec.image_size} pixels, and its facts say {expected}."
            )
        return found

    def _empty(self, split: str) -> dict[str, np.ndarray]:
        """The arrays of no image."""
        height, width, channels = _stored_shape(self.spec)
        channels = self.spec.encoder.channels if self.spec.sampled else channels
        one = np.zeros((0, height, width, channels), np.float16)
        sampled = self.spec.stored_encoder.kind == LATENTS
        arrays = {LATENTS if sampled else MOMENTS: one}
        if self.spec.flip:
            arrays[FLIPPED] = one
        if self.spec.with_pixels(split):
            side, colours = self.spec.image_size, self.spec.encoder.image_channels
            arrays[PIXELS] = np.zeros((0, side, side, colours), np.uint8)
        return arrays


def _stored_shape(spec: SetSpec) -> tuple[int, int, int]:
    """(h, w, channels) of what the encoder gives."""
    height, width, channels = spec.encoder.latent_shape(spec.image_size)
    return height, width, channels * (2 if spec.encoder.kind == MOMENTS else 1)


def _tokenize(pipeline: LatentPipeline, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
    """Token ids int32, held to what the tokenizer's facts say."""
    facts = pipeline.tokenizer
    if not captions:
        return np.zeros((0, facts.length), np.int32)
    ids = np.asarray(pipeline.tokenize(captions))
    expected = (len(captions), facts.length)
    if ids.shape != expected or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"The tokenizer {facts.name} gives {ids.dtype} {ids.shape} for {len(captions)} texts, "
            f"and its facts say integers {expected}."
        )
    if ids.min() < 0 or ids.max() >= facts.vocabulary:
        raise DataError(
            f"The tokenizer {facts.name} gives ids {ids.min()} to {ids.max()}, and its vocabulary "
            f"has {facts.vocabulary}."
        )
    return ids.astype(np.int32)


def _in_batches(
    encode: Callable[[np.ndarray], TextStates], ids: np.ndarray, size: int
) -> Iterator[tuple[int, TextStates]]:
    """The first row and the states of batches of texts, filled up to one size."""
    for at in range(0, len(ids), size):
        part = ids[at : at + size]
        found = encode(_filled(part, size))
        yield at, TextStates(*(np.asarray(x)[: len(part)] for x in found))


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows, and rows of zeros up to `size`."""
    if len(rows) == size:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def _half(values: AnyArray, names: Sequence[str]) -> np.ndarray:
    """Values in 16 bits.

    Raises:
      DataError: one is not finite there; the message has its name.
    """
    with np.errstate(over="ignore"):
        half = np.asarray(values).astype(np.float16)
    finite = np.isfinite(half).reshape(len(half), -1).all(axis=1)
    if not finite.all():
        name = names[int(np.argmin(finite))]
        raise DataError(
            f"The pipeline gives values for {name!r} that are not finite in 16 bits. Compute the "
            "encoder in float32, or leave this row out."
        )
    return half


def _keys(stream: str, seed: int, numbers: np.ndarray) -> jax.Array:
    """`[B]` keys of rows by their number in the split."""
    return jax.vmap(jax.random.fold_in, (None, 0))(stream_key(seed, stream), jnp.asarray(numbers))


def _unscaled(spec: SetSpec) -> EncoderFacts:
    """The encoder, for draws before shift and scaling."""
    return dataclasses.replace(spec.encoder, shift=0.0, scaling=1.0)
