"""What makes a set of captioned images: an encoder of images and a tokenizer of captions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int, UInt8

from ddistill.data.byte_pairs import (
    BytePairTokenizer,
    Pair,
    frequent_words,
    pairs_of_words,
    parse_merges,
)
from ddistill.data.encodings import LATENTS, EncoderFacts, TokenizerFacts
from ddistill.errors import DataError
from ddistill.runtime.files import DamagedFile, expand, read_text
from ddistill.typing import AnyArray

Encode: TypeAlias = Callable[[UInt8[np.ndarray, "B H W C"]], Float[AnyArray, "B h w d"]]
Tokenize: TypeAlias = Callable[[Sequence[str]], Int[AnyArray, "B L"]]


class TextStates(NamedTuple):
    """What a text encoder makes of token ids.

    Attributes:
      states: `[B, L, D]`, one a token.
      pooled: `[B, d]`, one a text.
    """

    states: Float[AnyArray, "B L D"]
    pooled: Float[AnyArray, "B d"]


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder, for sets that store its states.

    Attributes:
      digest: SHA-256 of its weights and options.
      encode: token ids int32 `[B, L]` to states.
    """

    digest: str
    encode: Callable[[Int[np.ndarray, "B L"]], TextStates]


@dataclass(frozen=True)
class LatentPipeline:
    """The parts of a text-to-image model that a set of latents depends on.

    Functions are called with batches of one size, so that a compiled one is compiled once, and the
    result of a row must not depend on the other rows.

    Attributes:
      encoder, tokenizer: facts, which the set records.
      encode: images to moments or latents before shift and scaling, as `encoder.kind` says.
      tokenize: texts to token ids.
      text_encoder: for pooled states, and states where they are wanted; None for neither.
      licence: of the model, which its latents inherit.
      files: by name the files that the set keeps, as their content or their place: a vocabulary,
        and the autoencoder, without which latents are not decoded.
    """

    encoder: EncoderFacts
    tokenizer: TokenizerFacts
    encode: Encode
    tokenize: Tokenize
    text_encoder: TextEncoder | None = None
    licence: str = ""
    files: Mapping[str, str | bytes | Path] = field(default_factory=dict)


_PIXELS_LENGTH, _PIXELS_WORDS = 32, 4096


def open_pixels(path: str, captions: Sequence[str]) -> LatentPipeline:
    """RGB images as they are, in [-1, 1], and a tokenizer of the captions' own words.

    This is the pipeline of a model without an autoencoder that learns its text encoder.

    Args:
      path: the file merges.txt of the tokenizer of another set; "" for a tokenizer of the most
        frequent words of `captions`.
      captions: of the training images.

    Raises:
      DataError: the file cannot be read, or is none.
    """
    if path:
        tokenizer = BytePairTokenizer(_read_pairs(expand(path)), _PIXELS_LENGTH)
    else:
        tokenizer = words_tokenizer(captions)
    return LatentPipeline(
        encoder=EncoderFacts("pixels", "", LATENTS, channels=3, factor=1),
        tokenizer=tokenizer.facts,
        encode=lambda images: images.astype(np.float32) / 127.5 - 1,
        tokenize=tokenizer,
        files=tokenizer.files(),
    )


def words_tokenizer(captions: Sequence[str]) -> BytePairTokenizer:
    """CLIP's tokenizer with the most frequent words of `captions` as its vocabulary."""
    return BytePairTokenizer(
        pairs_of_words(frequent_words(captions, _PIXELS_WORDS)), _PIXELS_LENGTH
    )


def _read_pairs(path: Path) -> tuple[Pair, ...]:
    try:
        return parse_merges(read_text(path))
    except DamagedFile as error:
        raise DataError(f"{error}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path} is no file of merges: {error}.") from None
