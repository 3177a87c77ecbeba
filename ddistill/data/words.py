"""A tokenizer of whole words, for data sets with a small vocabulary.

It is laid out as CLIP's: start, words, end, filled up with end; text is lower case; runs of
letters, single digits and runs of other characters are words. The id of the end is the largest, so
that the first maximum of the ids is the end of the text.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ddistill.data.encodings import TokenizerFacts

_WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_+")
# Start, end, and any word that is not in the vocabulary.
_SPECIAL = 3
# Ids are stored in 16 bits.
MOST_WORDS = 2**16 - _SPECIAL


def words_of(text: str) -> list[str]:
    """The words of a text in their order, in lower case."""
    return _WORD.findall(text.lower())


def vocabulary_of(texts: Iterable[str], most: int = MOST_WORDS) -> tuple[str, ...]:
    """The words of texts, the most frequent ones first; equally frequent ones by their letters."""
    counts = Counter(word for text in texts for word in words_of(text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word for word, _ in ranked[:most])


@dataclass(frozen=True)
class WordTokenizer:
    """Texts to ids: word i of the vocabulary is id i, then unknown words, the start and the end.

    Attributes:
      words: the vocabulary, each word once, in lower case.
      length: L, ids of every text; longer texts are cut to L - 2 words.
    """

    words: tuple[str, ...]
    length: int

    @property
    def unknown(self) -> int:
        """The id of words that are not in the vocabulary."""
        return len(self.words)

    @property
    def start(self) -> int:
        """The id at the beginning of every text."""
        return len(self.words) + 1

    @property
    def end(self) -> int:
        """The id at the end of every text and after it."""
        return len(self.words) + 2

    @property
    def facts(self) -> TokenizerFacts:
        """Its facts; the digest is that of the vocabulary."""
        text = f"words {self.length}\n" + "\n".join(self.words)
        digest = hashlib.sha256(text.encode()).hexdigest()
        null = (self.start, *[self.end] * (self.length - 1))
        return TokenizerFacts("words", digest, self.length, len(self.words) + _SPECIAL, null)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The ids of texts, int32."""
        numbers = {word: i for i, word in enumerate(self.words)}
        out = np.full((len(texts), self.length), self.end, np.int32)
        out[:, 0] = self.start
        for row, text in zip(out, texts):
            ids = [numbers.get(word, self.unknown) for word in words_of(text)][: self.length - 2]
            row[1 : 1 + len(ids)] = ids
        return out
