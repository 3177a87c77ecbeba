"""CLIP's tokenizer from the folder of a diffusers pipeline, by the library `tokenizers`.

Byte-pair encoding of lower-case text (arXiv 2103.00020). The folder has tokenizer.json, or
vocab.json and merges.txt; older pipelines have the latter alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ddistill.errors import ConfigError
from ddistill.interop.diffusers_folders import read_json
from ddistill.interop.file_kinds import why_unusable
from ddistill.runtime.files import read_text
from ddistill.typing import JsonRecord

JSON, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
FILES = (JSON, VOCABULARY, MERGES, SETTINGS, SPECIAL)
KINDS = ("CLIPTokenizer", "CLIPTokenizerFast")
START, END = "<|startoftext|>", "<|endoftext|>"
# The end of a word, as CLIP's vocabulary marks it.
_WORD_END = "</w>"
# Contractions, runs of letters, single digits, runs of other characters.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclass(frozen=True)
class ClipTokenizer:
    """Texts to token ids: start token, the text, end token, padding.

    Attributes:
      bpe: a `tokenizers.Tokenizer`, of which neither padding nor truncation is used.
      length: number of tokens of every text.
      start, end, pad: ids of the special tokens.
      files: the files that define it.
    """

    bpe: Any
    length: int
    start: int
    end: int
    pad: int
    files: tuple[Path, ...]

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self.bpe.get_vocab_size())

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """The ids of texts, int32; texts that are too long are cut, and keep their end token.

        Raises:
          TypeError: a text is none.
        """
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"A text is needed; {text!r} is a {type(text).__name__}.")
        # Lone surrogates stand for bytes that are no text.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        found = np.full((len(clean), self.length), self.pad, np.int32)
        for row, read in zip(found, self.bpe.encode_batch(clean, add_special_tokens=False)):
            ids = [self.start, *read.ids[: self.length - 2], self.end]
            row[: len(ids)] = ids
        return found


def read_tokenizer(folder: Path, length: int) -> ClipTokenizer:
    """The tokenizer of a folder.

    Args:
      folder: with tokenizer.json, or vocab.json and merges.txt; tokenizer_config.json or
        special_tokens_map.json say what texts are padded with.
      length: number of tokens of every text, the positions of the text encoder.

    Raises:
      ConfigError: the package `tokenizers` is not installed, or a file is missing or damaged.
    """
    library = _library()
    files = tuple(folder / name for name in FILES if (folder / name).is_file())
    for path in files:
        if reason := why_unusable(path):
            raise ConfigError(f"{path} {reason}.")
    try:
        bpe = _open(library, folder)
    # The library raises bare exceptions for damaged files.
    except Exception as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{folder} holds no tokenizer of CLIP: {error}") from None
    ids = {}
    for name, token in (("start", START), ("end", END), ("pad", _pad(folder))):
        ids[name] = bpe.token_to_id(token)
        if ids[name] is None:
            raise ConfigError(f"{folder}: the vocabulary lacks the token {token!r}.")
    bpe.no_padding()
    bpe.no_truncation()
    # As whole words in a text they stand for themselves.
    bpe.add_special_tokens([START, END])
    return ClipTokenizer(bpe, length, **ids, files=files)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "A tokenizer needs the package tokenizers: pip install 'ddistill[text]'."
        ) from None
    return tokenizers


def _open(library: Any, folder: Path) -> Any:
    if (folder / JSON).is_file():
        bpe = library.Tokenizer.from_file(str(folder / JSON))
        if not isinstance(bpe.model, library.models.BPE):
            raise ConfigError(f"{folder / JSON} is no tokenizer of CLIP, which is a BPE.")
        return bpe
    for name in (VOCABULARY, MERGES):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder / name} is missing; a tokenizer has {JSON}, or {VOCABULARY} and {MERGES}."
            )
    return _built(library, read_json(folder / VOCABULARY), _merges(folder / MERGES))


def _merges(path: Path) -> list[tuple[str, str]]:
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        pair = line.split()
        if not pair or line.startswith("#version"):
            continue
        if len(pair) != 2:
            raise ConfigError(f"{path}: line {number} is {line!r}; two tokens are needed.")
        found.append((pair[0], pair[1]))
    return found


def _built(library: Any, vocabulary: JsonRecord, merges: list[tuple[str, str]]) -> Any:
    model = library.models.BPE(
        vocab=vocabulary, merges=merges, end_of_word_suffix=_WORD_END, unk_token=END
    )
    bpe = library.Tokenizer(model)
    normalizers, pre, regex = library.normalizers, library.pre_tokenizers, library.Regex
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre.Split(regex(_WORDS), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre.Sequence([words, pre.ByteLevel(add_prefix_space=False)])
    return bpe


def _pad(folder: Path) -> str:
    """The token of the padding: 1.x pads with the end token, 2.x with "!"."""
    for file in (SETTINGS, SPECIAL):
        path = folder / file
        token = read_json(path).get("pad_token") if path.is_file() else None
        # Either the token, or an object with its properties.
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return END
