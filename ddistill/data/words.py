"""Words of captions that can be read off pictures, so that obedience to texts can be scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ddistill.data.byte_pairs import words_of
from ddistill.typing import HostLabels

# Pictures [N, H, W, C] in [-1, 1] and the classes of their captions, to an index of `Word.values`.
ReadWord = Callable[[Float[np.ndarray, "N H W C"], HostLabels], Int[np.ndarray, " N"]]


@dataclass(frozen=True)
class Word:
    """A word that captions have in several values, such as the name of a digit.

    Attributes:
      metric: name of the score, the share of pictures that show the value that their caption asks
        for; one of `METRICS` in evaluation/records/names.py.
      values: the values, each one word.
      read: reads the value off pictures; None for the classes of the run's classifier, of which
        class v is `values[v]`.
    """

    metric: str
    values: tuple[str, ...]
    read: ReadWord | None = None

    def asked(self, captions: Sequence[str]) -> Int[np.ndarray, " N"]:
        """By caption the index of its value, the first one; -1 for captions without the word."""
        index = {value: i for i, value in enumerate(self.values)}
        found = [next((index[w] for w in words_of(text) if w in index), -1) for text in captions]
        return np.array(found, np.int64)


def chance(asked: Int[np.ndarray, " N"]) -> float:
    """The share, in [0, 1], that obeys where captions are given to pictures at random.

    Args:
      asked: by caption the index of its value; -1 is left out.
    """
    said = asked[asked >= 0]
    shares = np.bincount(said) / max(1, len(said))
    return float(np.sum(np.square(shares)))
