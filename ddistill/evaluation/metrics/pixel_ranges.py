"""The range of the values of images: stated by the user, or decided by how the values are spread.

A few values never decide: samplers and filters leave their range a little. Where two ranges are
possible, or images are in different ones, nothing is decided, and the error names the flag that
states the range.
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
# Values that the spread is read off, drawn at random from larger arrays.
_LOOKED_AT = 1 << 20
# Share of values that may lie beyond an eighth of a range that is stated, for samplers that are not
# clipped.
_BEYOND_STATED = 0.1
_BLOCK = 256


@dataclass(frozen=True)
class Origin:
    """Where an array is from, for messages.

    Attributes:
      where: file and array.
      flag: what states its range.
    """

    where: str
    flag: str = "--range"


def check_range(flag: str, stated: str) -> str:
    """The name of a range in `RANGES`, from what a user wrote: "[0, 1]" is "0,1"; "" is kept.

    Raises:
      ConfigError: it is none of them.
    """
    name = "".join(stated.split()).strip("[]()")
    if name and name not in RANGES:
        raise ConfigError(f"{flag}={stated!r} is not known. Allowed: {', '.join(RANGES)}.")
    return name


def to_pixels(array: np.ndarray, origin: Origin, stated: str = "") -> tuple[np.ndarray, str]:
    """Images as uint8, and the range that their values were read in.

    uint8 arrays are in [0, 255] and pass. In [-1, 1] x becomes floor(x * 127.5 + 128), as in EDM's
    FID; in a range that begins at 0 the nearest of 256 levels. Values beyond the range are clipped.

    Args:
      array: [N, ...], the images; integers, floats or bool (False is black).
      origin: for messages.
      stated: one of `RANGES`; "" decides by the spread of the values.

    Returns:
      The images, and one of `RANGES`, or "" where the type of the array decided.

    Raises:
      DataError: no images, values that are no numbers or not finite, a range that the values
        contradict, or none stated where several are possible or images are in several.
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
    """The one of `RANGES` that the spread of some values allows; "" for several or none.

    The rules are those of `value_spread.judge`.
    """
    return str(judge(values.reshape(1, -1)).names[0])


def _check_one_range(array: np.ndarray, text: str, flag: str) -> None:
    """Raises `DataError` if images say by themselves that they are in different ranges."""
    first = find_parts(array).first()
    if len(first) > 1:
        listed = ", ".join(f"image {i} in [{n.replace(',', ', ')}]" for n, i in first.items())
        raise DataError(
            f"{text} seems to hold images of several ranges: {listed} (counted from 0). Bring them "
            f"to one range; if all are in one, give {flag}= with one of {'; '.join(RANGES)}."
        )


def _check_images(array: np.ndarray, text: str, flag: str, stated: str) -> None:
    """Raises `DataError` if images that are in another range by themselves leave the stated one."""
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
