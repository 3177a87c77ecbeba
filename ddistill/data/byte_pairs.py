"""CLIP's tokenizer with a small vocabulary of your own, for models that learn their text encoder.

Byte-pair encoding of lower-case text (arXiv 2103.00020, section 2.4), without another library. The
vocabulary is made of words: each becomes one token where the pairs of the others allow it, and any
other text becomes pieces of words or letters. `files` writes the tokenizer as transformers and
diffusers read it, with the same ids, so that an exported model takes the same text.
"""

import functools
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from ddistill.data.encodings import TokenizerFacts

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY, MERGES, SETTINGS = "vocab.json", "merges.txt", "tokenizer_config.json"
# The last piece of a word is another token than the same letters inside of a word.
_WORD_END = "</w>"
_VERSION = "#version: 0.2"
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")

Pair = tuple[str, str]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: letters, single digits, other characters, contractions."""
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    # By character, as the library `tokenizers` does it.
    lower = "".join(character.lower() for character in spaced)
    kinds = "".join(map(_kind, lower))
    found, place = [], 0
    while place < len(lower):
        contraction = _CONTRACTION.match(lower, place)
        end = contraction.end() if contraction else place + 1
        if not contraction and kinds[place] in "LO":
            while end < len(kinds) and kinds[end] == kinds[place]:
                end += 1
        if kinds[place] != " ":
            found.append(lower[place:end])
        place = end
    return found


def _kind(character: str) -> str:
    """L for a letter, N for a number, a space, or O for any other character."""
    category = unicodedata.category(character)[0]
    return category if category in "LN" else " " if character.isspace() else "O"


def frequent_words(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """The words of texts, the most frequent ones first; equally frequent ones by their letters."""
    counts = Counter(word for text in texts for word in words_of(text))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(word for word, _ in ranked[:most])


def pairs_of_words(words: Iterable[str]) -> tuple[Pair, ...]:
    """Pairs that build each word from its beginning to its end; earlier words come first."""
    found: dict[Pair, None] = {}
    for word in words:
        first, *others = _letters(word)
        for letter in others:
            found[first, letter] = None
            first += letter
    return tuple(found)


def parse_merges(text: str) -> tuple[Pair, ...]:
    """The pairs in the content of a file merges.txt.

    Raises:
      ValueError: a line is not two tokens with a space between them.
    """
    pairs: list[Pair] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(f"line {number} is not a pair of tokens")
        pairs.append((parts[0], parts[1]))
    return tuple(pairs)


@dataclass(frozen=True)
class BytePairTokenizer:
    """Texts to token ids: the start token, the tokens of the text, the end token, padded with it.

    The id of the end is the largest, as in CLIP, so that the first maximum of the ids is the end.

    Attributes:
      merges: pairs of tokens that are joined, the first ones first.
      length: L, ids of every text; of longer texts the first L - 2 tokens are kept.
    """

    merges: tuple[Pair, ...]
    length: int

    @functools.cached_property
    def ids(self) -> Mapping[str, int]:
        """By token its id: 256 letters, 256 last letters, the joined pairs, start and end."""
        letters = list(_alphabet().values())
        joined = ["".join(pair) for pair in self.merges]
        tokens = [*letters, *(f"{letter}{_WORD_END}" for letter in letters), *joined, START, END]
        return {token: i for i, token in enumerate(dict.fromkeys(tokens))}

    @functools.cached_property
    def _ranks(self) -> Mapping[Pair, int]:
        return {pair: i for i, pair in enumerate(self.merges)}

    @functools.cached_property
    def _known(self) -> dict[str, list[int]]:
        """Words that were tokenized before, and their ids."""
        return {}

    @property
    def facts(self) -> TokenizerFacts:
        """Its facts; the digest is that of the pairs and the length."""
        digest = hashlib.sha256(f"{self.length}\n{self._merges_file()}".encode()).hexdigest()
        null = tuple(int(i) for i in self([""])[0])
        return TokenizerFacts("byte pairs", digest, self.length, len(self.ids), null)

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The ids of texts, int32."""
        out = np.full((len(texts), self.length), self.ids[END], np.int32)
        out[:, 0] = self.ids[START]
        for row, text in zip(out, texts):
            ids = [i for word in words_of(text) for i in self._word(word)][: self.length - 2]
            row[1 : 1 + len(ids)] = ids
        return out

    def files(self) -> dict[str, str]:
        """By name the files that transformers and diffusers read as a CLIPTokenizer."""
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.length,
            "do_lower_case": True,
            **special,
        }
        return {
            VOCABULARY: json.dumps(self.ids, ensure_ascii=False) + "\n",
            MERGES: self._merges_file(),
            SETTINGS: json.dumps(settings, indent=1) + "\n",
        }

    def _merges_file(self) -> str:
        return "\n".join([_VERSION, *(" ".join(pair) for pair in self.merges)]) + "\n"

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = [self.ids[token] for token in self._tokens(word)]
        return self._known[word]

    def _tokens(self, word: str) -> list[str]:
        """The tokens of a word: again and again, the pair of the lowest rank is joined."""
        parts = _letters(word)
        while len(parts) > 1:
            ranked = [(self._ranks[p], p) for p in pairwise(parts) if p in self._ranks]
            if not ranked:
                break
            parts = list(_joined(parts, min(ranked)[1]))
        return parts


def _joined(parts: Sequence[str], pair: Pair) -> Iterator[str]:
    """Tokens with every occurrence of a pair joined, from the left."""
    place = 0
    while place < len(parts):
        both = tuple(parts[place : place + 2]) == pair
        yield "".join(pair) if both else parts[place]
        place += 2 if both else 1


def _letters(word: str) -> list[str]:
    """The letters of a word, one for each of its bytes, the last with the mark of the end."""
    alphabet = _alphabet()
    letters = [alphabet[byte] for byte in word.encode("utf-8", "replace")]
    return [*letters[:-1], f"{letters[-1]}{_WORD_END}"]


@functools.cache
def _alphabet() -> Mapping[int, str]:
    """By byte the printable character that stands for it in CLIP's vocabulary, in its order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    stand_ins = {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {byte: chr(byte) for byte in shown} | stand_ins
