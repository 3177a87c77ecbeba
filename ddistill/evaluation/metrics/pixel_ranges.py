"""The range of the values of images: given by the user, or derived from the values.

A few values never decide, because samplers and filters slightly leave their range. If two ranges
are possible, or images have different ranges, an error names the flag for the range.
"""

from dataclasses import dataclass

import numpy as np

from ddistill.errors import ConfigError, DataError
from ddistill.evaluation.metrics.mixed_ranges import find_parts
from ddistill.evaluation.metrics.pixels import quantise
from ddistill.evaluation.metrics.value_spread import judge

RANGES: dict[str, tuple[float, float]] = {
    "0,1": (0.0, 1.0),
    "-1,1": (-1.0, 1.0),
    "0,255": (0.0, 255.0),
    "0,65535": (0.0, 65535.0),
}
# Number of values that are examined, drawn at random from larger arrays.
_LOOKED_AT = 1 << 20
# Share of values that may exceed a given range by more than an eighth, for samplers without
# clipping.
_BEYOND_STATED = 0.1
_BLOCK = 256


@dataclass(frozen=True)
class Origin:
    """The origin of an array, for messages.

    Attributes:
      where: file and array.
      flag: name of the flag for the range.
    """

    where: str
    flag: str = "--range"


def check_range(flag: str, stated: str) -> str:
    """Normalises the name of a range: "[0, 1]" becomes "0,1"; "" does not change.

    Raises:
      ConfigError: the range is not in `RANGES`.
    """
    name = "".join(stated.split()).strip("[]()")
    if name and name not in RANGES:
        raise ConfigError(f"{flag}={stated!r} is not known. Allowed: {', '.join(RANGES)}.")
    return name


def to_pixels(array: np.ndarray, origin: Origin, stated: str = "") -> tuple[np.ndarray, str]:
    """Converts images to uint8 and returns the range of their values.

    uint8 arrays have the range [0, 255] and do not change. In [-1, 1] x becomes
    floor(x * 127.5 + 128), as in the FID of EDM; in ranges from 0 it becomes the nearest of 256
    levels. Values outside the range are clipped.

    Args:
      array: [N, ...] images; integers, floats or bool (False is black).
      origin: origin of the array, for messages.
      stated: one of `RANGES`; "" derives it from the values.

    Returns:
      (images, range): the range is one of `RANGES`, or "" if the type of the array implies it.

    Raises:
      DataError: there are no images, values are no numbers or not finite, values contradict
        `stated`, or without `stated` several ranges are possible.
    """
    text = f"{origin.where} ({array.dtype})"
    if array.ndim == 0 or not array.size:
        raise DataError(f"{text} holds no images: its shape is {array.shape}.")
    if array.dtype == np.bool_ and not stated:
        return array.astype(np.uint8) * np.uint8(255), ""
    if array.dtype.kind not in "iufb":
        raise DataError(f"{text} must hold numbers: uint8, other integers, or floats.")
    if array.dtype == np.bool_:
        raise DataError(f"{text} is black and white; leave {origin.flag}={stated} out.")
    if array.dtype == np.uint8 and stated not in ("", "0,255") and array.max(initial=0) > 1:
        raise DataError(f"{text} is in [0, 255] by its type; leave {origin.flag}={stated} out.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{text} holds values that are not finite; the sampler has diverged.")
    if array.dtype == np.uint8 and (array.max(initial=0) != 1 or stated == "0,255"):
        return array, ""
    values = _some_of(array)
    if stated:
        _check_stated(values, text, origin.flag, stated)
        _check_images(array, text, origin.flag, stated)
    else:
        _check_one_range(array, text, origin.flag)
    name = stated or ("" if array.min() == array.max() else decide(values))
    if not name:
        raise DataError(
            f"{text} has values from {array.min():.3g} to {array.max():.3g}, {_share(values < 0)} "
            f"below 0, which fit several ranges or none. Give {origin.flag}= with one of "
            f"{'; '.join(RANGES)}, or save images of values 0 to 255 as uint8."
        )
    return _blockwise(array, name), name


def decide(values: np.ndarray) -> str:
    """The range of some values by the rules of `value_spread.judge`; "" for several or none.

    The result is one of `RANGES`.
    """
    return str(judge(values.reshape(1, -1)).names[0])


def _check_one_range(array: np.ndarray, text: str, flag: str) -> None:
    """Raises `DataError` if the values of single images imply different ranges."""
    first = find_parts(array).first()
    if len(first) > 1:
        listed = ", ".join(f"image {i} in [{n.replace(',', ', ')}]" for n, i in first.items())
        raise DataError(
            f"{text} seems to hold images of several ranges: {listed} (counted from 0). "
            f"Convert them to one range; if all have one range, give {flag}= with one of "
            f"{'; '.join(RANGES)}."
        )


def _check_images(array: np.ndarray, text: str, flag: str, stated: str) -> None:
    """Raises `DataError` if an image implies another range and leaves the stated range."""
    names = find_parts(array).names
    for i in np.flatnonzero((names != "") & (names != stated)):
        _check_stated(array[i], f"{text}: image {i}", flag, stated)


def _check_stated(values: np.ndarray, text: str, flag: str, stated: str) -> None:
    low, high = RANGES[stated]
    margin = (high - low) / 8
    outside = (values < low - margin) | (values > high + margin)
    if outside.mean() > _BEYOND_STATED:
        raise DataError(
            f"{text} has values from {values.min():.3g} to {values.max():.3g}; {_share(outside)} "
            f"lie outside of {flag}={stated}."
        )


def _share(chosen: np.ndarray) -> str:
    share = float(chosen.mean())
    return "none" if not share else f"{share:.1%}" if share >= 0.001 else "less than 0.1%"


def _some_of(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    if flat.size <= _LOOKED_AT:
        return flat
    return flat[np.random.default_rng(0).integers(0, flat.size, _LOOKED_AT)]


def _blockwise(array: np.ndarray, name: str) -> np.ndarray:
    top = RANGES[name][1]

    def nearest(x: np.ndarray) -> np.ndarray:
        return np.floor(np.clip(x.astype(np.float64) * (255 / top), 0, 255) + 0.5).astype(np.uint8)

    def floored(x: np.ndarray) -> np.ndarray:
        return quantise(x if x.dtype.kind == "f" else x.astype(np.float32))

    convert = floored if name == "-1,1" else nearest
    made = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), _BLOCK):
        made[start : start + _BLOCK] = convert(array[start : start + _BLOCK])
    return made
