"""The values that an image file stores: depth, range and the transparent colour.

Pillow reads values of 2, 4, 12 and 16 bits into other types and drops their range.
"""

import io
import re
import sys
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile

# An entry of `ImageFile.tile`: decoder, extents, offset, arguments. Named since Pillow 11.1.
Tile = TypeVar("Tile", bound=tuple)

# How files begin.
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SIGNED, _SEPARATE = 0, 2, 2
# Pillow's names of colours of 16 bits: in the order of the bytes of the file, or of the machine.
_WIDE = re.compile("((?!I)[A-Z]+a?);16([BLN])")
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def has_sixteen_bit_colours(content: bytes) -> bool:
    """Whether a PNG or TIFF stores colours, or grey with alpha, of 16 bits, by its header alone."""
    if content.startswith(_PNG):
        # After the signature: length and name of the first block, width, height, depth, colours.
        return content[24:25] == b"\x10" and content[25:26] != b"\0"
    if not content.startswith(_TIFF):
        return False
    try:
        with Image.open(io.BytesIO(content)) as image:
            return 16 in _tag(image, _BITS) and not image.mode.startswith("I")
    except Exception:  # a damaged image, which `decode` reports
        return False


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


def mend_planes(image: ImageFile.ImageFile) -> None:
    """Has the bands of an uncompressed TIFF of 16 bits read as such, before they are read.

    Pillow takes the bands of files with a plane a band for bytes.
    """
    planes, bits = _tag(image, _PLANES), set(_tag(image, _BITS))
    if planes != (_SEPARATE,) or bits != {16} or any(tile[0] != "raw" for tile in image.tile):
        return
    order = "B" if image.tag_v2.prefix == b"MM" else "L"  # type: ignore[attr-defined]
    image.tile = [_with_name(tile, f"{_name_of(tile[3])[:1]};16{order}") for tile in image.tile]


def stored_as(image: ImageFile.ImageFile) -> str:
    """Pillow's name of the values in the file, such as "L;2"; "" where there is none."""
    return _name_of(image.tile[0][3]) if image.tile else ""


def _name_of(arguments: object) -> str:
    """The first argument of a decoder, which is the name of the values for most of them."""
    found = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return found if isinstance(found, str) else ""


def sixteen_bit_colours(content: bytes, image: Image.Image, stored: str) -> np.ndarray | None:
    """The values of colours of 16 bits, or grey with alpha, of which Pillow keeps the high bytes.

    Args:
      content: of the file.
      image: as Pillow has read it.
      stored: see `stored_as`.

    Returns:
      int32 [H, W, C] of the bands of `image`; None for other files.
    """
    if not _WIDE.fullmatch(stored):
        return None
    if stored.startswith("RGBa"):
        return _straight(content)
    with Image.open(io.BytesIO(content)) as again:
        mend_planes(again)
        if stored.startswith("LA"):
            # Four bytes a pixel, which are taken for four bands.
            again.tile = [_with_name(tile, "RGBA") for tile in again.tile]
            grey, low_grey, alpha, low_alpha = np.moveaxis(np.asarray(again), -1, 0)
            bands = [grey, grey, grey, alpha] if image.mode == "RGBA" else [grey, alpha]
            low_bands = [low_grey] * (len(bands) - 1) + [low_alpha]
            high, low = np.stack(bands, -1), np.stack(low_bands, -1)
        else:
            # Taken for values of the other order of bytes, the second byte is the high one.
            again.tile = [_with_name(tile, _swapped(_name_of(tile[3]))) for tile in again.tile]
            high, low = np.asarray(image), np.asarray(again)
    return (high.astype(np.int32) << 8) + low


def _straight(content: bytes) -> np.ndarray:
    """Colours of 16 bits that are stored as products with alpha, int32 [H, W, 4], divided by it."""
    halves = []
    for order in (str, _swapped):
        with Image.open(io.BytesIO(content)) as image:
            names = [order(_name_of(tile[3]).replace("a", "A")) for tile in image.tile]
            image.tile = [_with_name(*pair) for pair in zip(image.tile, names, strict=True)]
            halves.append(np.asarray(image).astype(np.int64))
    values = (halves[0] << 8) + halves[1]
    alpha = values[..., 3:]
    colour = np.minimum(values[..., :3] * 65535 // np.maximum(alpha, 1), 65535)
    return np.concatenate([colour, alpha], axis=-1).astype(np.int32)


def _swapped(name: str) -> str:
    found = _WIDE.fullmatch(name)
    return f"{found[1]};16{_OTHER_ORDER[found[2]]}" if found else name


def _with_name(tile: Tile, name: str) -> Tile:
    codec, extents, offset, arguments = tile
    given = (name, *arguments[1:]) if isinstance(arguments, tuple) else name
    changed = codec, extents, offset, given
    make = getattr(type(tile), "_make", type(tile))
    return make(changed)


def rounded(image: Image.Image, wide: np.ndarray) -> Image.Image:
    """The image with its values of 16 bits [H, W, C] rounded to 8."""
    made = Image.fromarray(_to_eight_bits(wide, 65535), image.mode)
    made.info = image.info
    return made


def _to_eight_bits(values: np.ndarray, most: int) -> np.ndarray:
    # 65535 = 255 * 257, so white stays white; half is added to round.
    return ((values.astype(np.int64) * 255 + most // 2) // most).astype(np.uint8)


def is_colour(
    image: Image.Image, stored: str, colour: tuple[int, ...], wide: np.ndarray | None
) -> np.ndarray:
    """Which pixels of a PNG have the colour `colour`, bool [H, W], at the depth of the file.

    Args:
      image: as Pillow has read it.
      stored: Pillow's name of the stored values, such as "L;2".
      colour: one or three values, compared in the bits that the file stores.
      wide: int32 [H, W, 3], the values of 16-bit RGB, of which `image` has the high bytes.
    """
    values = np.asarray(image)
    if image.mode == "1":
        return values == bool(colour[0])
    if image.mode == "RGB":
        if wide is None:
            return (values == [value & 255 for value in colour]).all(axis=-1)
        return (wide == colour).all(axis=-1)
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
    return Image.fromarray(_to_eight_bits(values, most))


def _tag(image: Image.Image, number: int) -> tuple[int, ...]:
    """The values of a TIFF tag; none for other formats."""
    found = getattr(image, "tag_v2", {}).get(number, ())
    return found if isinstance(found, tuple) else (found,)
