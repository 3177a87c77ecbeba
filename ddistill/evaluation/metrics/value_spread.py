"""Derives the range of pixel values from the values, for each row separately.

A few values never decide, because samplers and filters slightly leave their range.
"""

from dataclasses import dataclass

import numpy as np

# The smallest share of values that counts, and the largest share of outliers; for rows with few
# values, the same as numbers of values.
_SOME, _STRAY = 0.01, 0.005
_SOME_VALUES, _STRAY_VALUES = 3, 2
# Share of values that may exceed the range by more than an eighth, for samplers without clipping.
_BEYOND = 0.05
# Number of distinct multiples of 1/255 that show that values were uint8.
_LEVELS = 8


@dataclass(frozen=True)
class Verdicts:
    """The range of each row.

    Attributes:
      names: [n] "0,1", "-1,1", "0,255" or "0,65535"; "" if several ranges or none fit.
      exact: [n] whether the steps between values decided, which is conclusive.
      low, high: [n] the smallest and the largest value without outliers.
    """

    names: np.ndarray
    exact: np.ndarray
    low: np.ndarray
    high: np.ndarray


def judge(rows: np.ndarray) -> Verdicts:
    """Derives the range of each row.

    * Multiples of 1/255 within [-1, 1]: [0, 1] if odd and even multiples occur; [-1, 1] if all are
      odd, as for uint8 values converted by x / 127.5 - 1.
    * [-1, 1]: dark pixels are near -1, and few values exceed 1.25 in magnitude.
    * [0, 1]: almost no value is below -0.1 or above 1.25, and there are dark and bright pixels.
    * [0, 255] and [0, 65535]: the same at their scale, and bright pixels are enough.

    Args:
      rows: [n, m] finite floats, or integers.
    """
    x = rows.astype(np.float64)
    steps = np.full(len(x), "", "U7")
    if rows.dtype.kind == "f":
        steps = _of_levels(x)
        names = np.where(steps != "", steps, _of_floats(x))
    else:
        names = _of_whole_numbers(x)
    few = int(_stray(x) * x.shape[1])
    ordered = np.partition(x, (few, x.shape[1] - 1 - few), axis=1)
    return Verdicts(names, steps != "", ordered[:, few], ordered[:, -1 - few])


def _some(x: np.ndarray) -> float:
    return max(_SOME, _SOME_VALUES / x.shape[1])


def _stray(x: np.ndarray) -> float:
    # In a row of very few values, every value counts.
    return max(_STRAY, min(_STRAY_VALUES / x.shape[1], 0.05))


def _of_levels(x: np.ndarray) -> np.ndarray:
    level = np.where(np.abs(x) <= 1, x * 255, 0.5)
    whole = np.rint(level)
    on = np.abs(level - whole) < 0.1
    count = np.maximum(on.sum(axis=1), 1)
    odd = (on & (whole % 2 == 1)).sum(axis=1) / count
    stepped = (on.mean(axis=1) >= 1 - _stray(x)) & (_distinct(whole, on) >= _LEVELS)
    positive = np.mean(x < -0.02, axis=1) <= _stray(x)
    return np.select(
        [
            stepped & (odd > 1 - _STRAY),
            stepped & (odd > 0.05) & (odd < 0.95) & positive,
        ],
        ["-1,1", "0,1"],
        "",
    )


def _distinct(whole: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Number of distinct whole numbers in [-255, 255] of each row where `chosen`."""
    rows = np.broadcast_to(np.arange(len(whole))[:, None], whole.shape)[chosen]
    cells = rows * 511 + whole[chosen].astype(np.int64) + 255
    return (np.bincount(cells, minlength=len(whole) * 511).reshape(-1, 511) > 0).sum(axis=1)


def _of_floats(x: np.ndarray) -> np.ndarray:
    size = np.abs(x)
    near = (size > 1.25).mean(axis=1) <= max(_BEYOND, _stray(x))
    near &= (size > 2).mean(axis=1) <= _stray(x)
    signed = near & ((x < -0.75).mean(axis=1) >= _some(x))
    dark, bright = ((x < 0.125).mean(axis=1), (x > 0.5).mean(axis=1))
    # Only zeros and ones may be black and white in [0, 1], or almost black in [0, 255].
    unit = (dark >= _some(x)) & (bright >= _some(x)) & _within(x, 1) & np.any(x % 1 != 0, axis=1)
    return np.select([signed, unit, _bright_enough(x, 255)], ["-1,1", "0,1", "0,255"], "")


def _of_whole_numbers(x: np.ndarray) -> np.ndarray:
    # Integers have no rounding errors, and few values exceed the range.
    found = np.full(len(x), "", "U7")
    for top in (65535, 255):
        fits = np.mean((x < 0) | (x > top), axis=1) <= _stray(x)
        found[fits & _bright_enough(x, top)] = f"0,{top}"
    return found


def _bright_enough(x: np.ndarray, top: int) -> np.ndarray:
    return _within(x, top) & (np.mean(x > top / 2, axis=1) >= _some(x))


def _within(x: np.ndarray, top: float) -> np.ndarray:
    """Whether values are in [0, top], except for small errors and outliers."""
    below, above = np.mean(x < -0.1 * top, axis=1), np.mean(x > 1.25 * top, axis=1)
    return (below <= _stray(x)) & (above <= _stray(x))
