"""The embedded captioned set: scans of digits with captions such as "a thin handwritten three".

A caption is a pure function of a scan: the digit is its label, and "thin" or "thick" its mean ink,
compared with other scans of the digit. Both can be measured on generated images without a network
that was trained on images and texts.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ddistill.data.byte_pairs import BytePairTokenizer, pairs_of_words
from ddistill.data.dataset import Dataset
from ddistill.data.digits import (
    COUNT,
    DigitsSettings,
    load_digits,
    read_scans,
    split_digits,
)
from ddistill.data.tokenized import tokenized
from ddistill.data.words import Word

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THIN, THICK = "thin", "thick"
# The share of every digit's scans, around its median, of which the thickness is not said: words
# that depend on one grey level would be noise.
UNSAID = 0.2
# With a word for the thickness and without; all are short, with the digit near the beginning.
TEMPLATES = (
    ("a {thickness} handwritten {digit}", "a handwritten {digit}"),
    ("a {thickness} {digit}", "a {digit}"),
    ("the digit {digit}, {thickness}", "the digit {digit}"),
)
WORDS = ("a", "handwritten", "the", "digit", ",", THIN, THICK, *DIGITS)
# Start, the longest caption ("the digit three, thin") and the end.
LENGTH = 7
CAPTION = "caption"


@dataclass(frozen=True)
class TextDigitsSettings:
    """Data settings of `text_digits`.

    Attributes:
      name: "text_digits".
      flip: mirror at random while training; None = no, because mirrored digits are no digits.
    """

    name: str = "text_digits"
    flip: bool | None = None


class InkLimits(NamedTuple):
    """The mean ink that divides the scans of each digit, from the training split.

    Attributes:
      low: thin scans have less.
      middle: the median, with which generated images are compared.
      high: thick scans have more.
    """

    low: Float[np.ndarray, "10"]
    middle: Float[np.ndarray, "10"]
    high: Float[np.ndarray, "10"]


class Prompt(NamedTuple):
    """A prompt of which both words can be measured.

    Attributes:
      text: the caption.
      digit: 0 .. 9.
      thickness: `THIN` or `THICK`.
    """

    text: str
    digit: int
    thickness: str


def load_text_digits(settings: TextDigitsSettings, split: str) -> Dataset:
    """The scans of `load_digits` with captions and their token ids."""
    dataset = load_digits(DigitsSettings(flip=settings.flip), split)
    texts = captions(dataset.take(range(len(dataset))), dataset.labels, ink_limits())
    tokenizer = digit_tokenizer()
    named = dataclasses.replace(
        dataset,
        name="text_digits",
        provenance=f"captioned {dataset.provenance}",
        texts={CAPTION: texts},
        words=(Word("digit_word", DIGITS), Word("thickness_word", (THIN, THICK), read_thickness)),
        files=tokenizer.files(),
    )
    return tokenized(named, tokenizer, tokenizer.facts, CAPTION)


def count_text_digits(settings: TextDigitsSettings, split: str) -> int:
    """Number of images of a split."""
    return len(load_digits(DigitsSettings(), split))


def describe_text_digits(settings: TextDigitsSettings) -> str:
    """One line on the embedded set."""
    return f"text_digits: {COUNT} captioned scans of 8x8 pixels, embedded in scikit-learn"


def digit_tokenizer() -> BytePairTokenizer:
    """The tokenizer of the captions: every word of `WORDS` is one token of `LENGTH`."""
    return BytePairTokenizer(pairs_of_words(WORDS), LENGTH)


def mean_ink(images: Float[np.ndarray, "N H W 1"]) -> Float[np.ndarray, " N"]:
    """The share of ink, 0 to 1, of images in [-1, 1] with 1 for ink."""
    return (np.asarray(images, np.float64).mean(axis=(1, 2, 3)) + 1) / 2


def ink_limits() -> InkLimits:
    """The limits of the training split; they are the same for both splits."""
    levels, labels = read_scans()
    train, _ = split_digits(levels, labels)
    ink = mean_ink(levels[train, ..., None] / 8 - 1)
    shares = (0.5 - UNSAID / 2, 0.5, 0.5 + UNSAID / 2)
    own = [np.quantile(ink[labels[train] == digit], shares) for digit in range(10)]
    return InkLimits(*np.array(own).T)


def thickness_words(
    ink: Float[np.ndarray, " N"], labels: Int[np.ndarray, " N"], limits: InkLimits
) -> list[str]:
    """By scan `THIN`, `THICK` or "" for the scans around the median of their digit."""
    thin, thick = ink < limits.low[labels], ink > limits.high[labels]
    return [THIN if a else THICK if b else "" for a, b in zip(thin, thick)]


def captions(
    images: Float[np.ndarray, "N H W 1"], labels: Int[np.ndarray, " N"], limits: InkLimits
) -> tuple[str, ...]:
    """The captions of scans; the template of a scan is chosen by the hash of its pixels."""
    words = thickness_words(mean_ink(images), labels, limits)
    grey = np.round((np.asarray(images) + 1) * 8).astype(np.uint8)
    kinds = [hashlib.sha256(scan.tobytes()).digest()[0] % len(TEMPLATES) for scan in grey]
    return tuple(caption(int(d), word, kind) for d, word, kind in zip(labels, words, kinds))


def caption(digit: int, thickness: str, template: int = 0) -> str:
    """A caption of a digit; `thickness` is a word, or "" to leave it out."""
    with_word, without = TEMPLATES[template]
    return (with_word if thickness else without).format(digit=DIGITS[digit], thickness=thickness)


def prompts() -> tuple[Prompt, ...]:
    """The 20 prompts of every digit and thickness, for grids and scores."""
    return tuple(
        Prompt(caption(digit, word), digit, word) for digit in range(10) for word in (THIN, THICK)
    )


def read_thickness(
    images: Float[np.ndarray, "N H W 1"], labels: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """0 for thin and 1 for thick images, in [-1, 1].

    An image is thin where its mean ink is below the median of the digit of its prompt, so that
    half of the scans of every digit have each thickness.

    Args:
      images: generated images, or scans.
      labels: the digits of their captions.
    """
    return (mean_ink(images) >= ink_limits().middle[labels]).astype(np.int64)
