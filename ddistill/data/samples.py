"""The values that an image file stores: their depth, their range and the colour that is no colour.

Pillow reads values of 2, 4, 12 and 16 bits into other types without what else the file says of
them.
"""

import numpy as np
from PIL import Image

# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def transparent_colour(image: Image.Image) -> tuple[int, ...] | None:
    """The colour of a PNG without alpha that stands for transparent, as the file stores it.

    One value for grey images and three for RGB; None where there is no such colour. Palettes have
    an alpha value for each entry instead, which Pillow applies.
    """
    if image.format != "PNG" or image.mode not in ("1", "L", "I", "I;16", "RGB"):
        return None
    colour = image.info.get("transparency")
    if colour is None:
        return None
    return tuple(colour) if isinstance(colour, tuple) else (colour,)


def is_colour(
    image: Image.Image, stored: str, colour: tuple[int, ...], low: np.ndarray | None
) -> np.ndarray:
    """Which pixels of a PNG have the colour `colour`, bool [H, W], at the depth of the file.

    Args:
      image: as Pillow has read it.
      stored: Pillow's name of the stored values, such as "L;2".
      colour: of one or three values, of which those bits count that the file has.
      low: uint8 [H, W, 3], the low bytes of 16-bit RGB, of which `image` has the high ones.
    """
    values = np.asarray(image)
    if image.mode == "1":
        return values == bool(colour[0])
    if image.mode == "RGB":
        wide = values.astype(np.int32)
        if low is None:
            return (wide == [value & 255 for value in colour]).all(axis=-1)
        return ((wide << 8) + low == colour).all(axis=-1)
    if image.mode == "L":
        most = {"L;2": 3, "L;4": 15}.get(stored, 255)
        # Pillow spreads the values of few bits over 0..255.
        return values == (colour[0] & most) * (255 // most)
    return values == colour[0]


def check_range(image: Image.Image) -> None:
    """Raises `ValueError` for values of which no file says what black and white are."""
    if image.mode == "F":
        raise ValueError("32-bit float values have no fixed range; convert it to 8 or 16 bits")
    if _SIGNED in _tag(image, _SAMPLE_FORMAT):
        raise ValueError("signed values have no fixed range; convert it to 8 or 16 bits")


def from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Values of 12 or 16 bits in modes "I" and "I;16", scaled to 8 bits and rounded.

    Raises:
      ValueError: the file stores 32 bits or signed values.
    """
    # Pillow scales PNM files with a maximum of their own to 65535, in the same mode as TIFF's 32
    # bits.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        wide = 32 in _tag(image, _BITS) or not _tag(image, _BITS)
        kind = "32-bit integer" if wide else "signed"
        raise ValueError(f"{kind} values have no fixed range; convert it to 8 or 16 bits")
    check_range(image)
    most = 4095 if _tag(image, _BITS) == (12,) else 65535
    values = np.asarray(image).astype(np.int64)
    if _WHITE_IS_ZERO in _tag(image, _PHOTOMETRIC):
        values = most - values
    # 65535 = 255 * 257, so white stays white; half is added to round.
    return Image.fromarray(((values * 255 + most // 2) // most).astype(np.uint8))


def _tag(image: Image.Image, number: int) -> tuple[int, ...]:
    """The values of a TIFF tag; none for other formats."""
    found = getattr(image, "tag_v2", {}).get(number, ())
    return found if isinstance(found, tuple) else (found,)
