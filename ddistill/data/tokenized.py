"""Captions of a data set of pixels as token ids."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from ddistill.data.columns import check_column
from ddistill.data.dataset import Dataset
from ddistill.data.encodings import TokenizerFacts
from ddistill.errors import DataError
from ddistill.typing import AnyArray


def tokenized(
    dataset: Dataset,
    tokenize: Callable[[Sequence[str]], Int[AnyArray, "B L"]],
    facts: TokenizerFacts,
    column: str,
) -> Dataset:
    """The data set with a column of texts as its conditions; images and classes stay.

    Args:
      dataset: with texts, such as a folder with metadata or a parquet file with captions.
      tokenize: texts to token ids.
      facts: of the tokenizer.
      column: of `Dataset.texts`.

    Raises:
      ConfigError: there is no such column.
      DataError: the tokenizer gives another shape than its facts say.
    """
    check_column("column", column, tuple(dataset.texts), dataset.name)
    ids = np.asarray(tokenize(list(dataset.texts[column])), np.int32)
    if ids.shape != (len(dataset), facts.length):
        raise DataError(
            f"The tokenizer {facts.name} gives {ids.shape} for {len(dataset)} texts, and its facts "
            f"say {(len(dataset), facts.length)}."
        )
    return dataclasses.replace(
        dataset,
        tokens=ids,
        tokenizer=facts,
        identity={**dataset.identity, **identify_tokens(ids, facts)},
    )


def identify_tokens(ids: Int[np.ndarray, "N L"], facts: TokenizerFacts) -> dict[str, str]:
    """What the conditions add to `Dataset.identity`."""
    digest = hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
    return {"tokens": digest, "tokenizer": facts.digest}
