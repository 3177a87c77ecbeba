"""A pipeline without weights for sets of latents, and folders of captioned pictures."""

import dataclasses
from pathlib import Path

import numpy as np
from pictures import picture, save

from ddistill.data.byte_pairs import BytePairTokenizer, pairs_of_words
from ddistill.data.captions.choices import Choices
from ddistill.data.captions.sources import open_source
from ddistill.data.encodings import EncoderFacts
from ddistill.data.latents.pipeline import LatentPipeline, TextEncoder, TextStates
from ddistill.data.latents.writer import SetOptions, make_set

SIDE, FACTOR, ROWS = 16, 4, 7
TOKENIZER = BytePairTokenizer(pairs_of_words(("picture", "number")), 6)
ENCODER = EncoderFacts("means", "e" * 64, "moments", 3, FACTOR, scaling=0.5, shift=0.25)
# About 3 rows a shard.
OPTIONS = SetOptions(image_size=SIDE, shard_mb=0.0013, batch_size=2, workers=2)


def encode(images: np.ndarray) -> np.ndarray:
    """Moments [B, 4, 4, 6]: means over squares, and a tenth of them less 2."""
    count = len(images)
    squares = images.reshape(count, SIDE // FACTOR, FACTOR, SIDE // FACTOR, FACTOR, 3)
    means = squares.astype(np.float32).mean(axis=(2, 4)) / 127.5 - 1
    return np.concatenate([means, means / 10 - 2], axis=-1)


def states(ids: np.ndarray) -> TextStates:
    every = ids[..., None] * np.array([1.0, 0.5])
    return TextStates(every, every.mean(axis=1))


def pipeline(**changes) -> LatentPipeline:
    known = LatentPipeline(ENCODER, TOKENIZER.facts, encode, TOKENIZER)
    return dataclasses.replace(known, **changes)


def with_text_encoder(**changes) -> LatentPipeline:
    return pipeline(text_encoder=TextEncoder("t" * 64, states), **changes)


def folder(root: Path, rows: int = ROWS) -> Path:
    """Pictures 0.png, 1.png and so on, with captions beside them."""
    for i in range(rows):
        save(root / f"{i}.png", picture(i, SIDE))
        (root / f"{i}.txt").write_text(f"picture number {i}")
    return root


def source(root: Path, **choices):
    return open_source(str(root), Choices(**choices))


def make(root: Path, out: Path, networks: LatentPipeline | None = None, say=print, **changes):
    """A set of the training split alone, or of both where `test_fraction` is given."""
    fraction = changes.pop("test_fraction", 0.0)
    options = dataclasses.replace(OPTIONS, **changes)
    parts = source(root).parts(fraction)
    return make_set(parts, networks or pipeline(), out, options, say)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
