"""One encoded image to one uint8 array of the requested shape."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ddistill.data.samples import (
    check_range,
    from_sixteen_bits,
    is_colour,
    mend_planes,
    rounded,
    sixteen_bit_colours,
    stored_as,
    transparent_colour,
)
from ddistill.errors import ConfigError

# File types that count as images. Pillow reads more types, some of which are no pictures.
EXTENSIONS = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
# Of `decode`: goes up when it gives other pixels. Part of what identifies a TFDS set. A set without
# images that decode otherwise keeps its number, so that its trainings can go on.
_DECODING = 2
_DECODING_OF_SIXTEEN_BITS = 3
ORIENTATION_TAG = 0x0112
_ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}


@dataclass(frozen=True)
class ImageSpec:
    """The shape that images are brought to.

    Attributes:
      size: side in pixels of the centre square that is kept, enlarged or reduced with Lanczos
        (antialiased). 0 keeps images as they are.
      channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
    """

    size: int
    channels: int

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ConfigError(f"data.channels={self.channels} cannot be: 1 (grey) or 3 (RGB).")
        if self.size < 0:
            raise ConfigError(
                f"data.image_size={self.size} cannot be: the side in pixels, or 0 to keep sizes."
            )

    def __str__(self) -> str:
        side = f"{self.size}x{self.size} centre crop, Lanczos" if self.size else "own size"
        return f"{side}, {'RGB' if self.channels == 3 else 'grey'}"


def decode(
    source: str | os.PathLike | bytes, spec: ImageSpec, note: Callable[[], object] | None = None
) -> np.ndarray:
    """The first frame of an image as uint8 [H, W, C].

    EXIF orientation is applied, palettes are looked up, transparent parts are laid over white, and
    16-bit values are scaled to 8 bits and rounded (65535 = 255 * 257).

    Args:
      source: path of a file, or its bytes.
      spec: the shape wanted.
      note: called where there are further frames: an animation, or a TIFF of several pages.

    Raises:
      ValueError: it is broken, no image, or one without a fixed range of values (32-bit or signed
        TIFF).
    """
    try:
        # From memory: Pillow maps some uncompressed files and then turns TIFFs wrongly.
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if spec.size:
                # Lets the JPEG decoder halve large photographs, down to twice the side wanted.
                image.draft(None, (2 * spec.size, 2 * spec.size))
            mend_planes(image)
            stored = stored_as(image)
            # Every pixel is read before the orientation is: PNG keeps its EXIF block at the end.
            image.load()
            colour = transparent_colour(image)
            wide = sixteen_bit_colours(content, image, stored)
            transparent = None if colour is None else is_colour(image, stored, colour, wide)
            converted = _convert(image, wide, spec.channels, transparent)
            converted = _turned(converted, _orientation(image))
            if note is not None and _has_more_frames(image):
                note()
    # Pillow's decoders raise whatever the damage leads to: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(_reason(error)) from error
    if spec.size:
        converted = _square(converted, spec.size)
    pixels = np.asarray(converted)
    return pixels[..., None] if spec.channels == 1 else pixels


def decoding(sixteen_bits: bool) -> int:
    """The version of `decode` for a set: images with colours, or grey and alpha, of 16 bits
    have one of their own."""
    return _DECODING_OF_SIXTEEN_BITS if sixteen_bits else _DECODING


def _has_more_frames(image: Image.Image) -> bool:
    """Whether there are frames after the first; of one that cannot be read nothing is said."""
    if image.format not in _ANIMATED:  # the other pictures of a photograph's file are previews
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; a damaged EXIF block is no reason to fail."""
    try:
        found = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turns the image as its EXIF orientation says."""
    for turn in _TURNS.get(orientation, ()):
        image = image.transpose(turn)
    return image


def _convert(
    image: Image.Image, wide: np.ndarray | None, channels: int, transparent: np.ndarray | None
) -> Image.Image:
    """To "L" or "RGB" with 8 bits, pixels that are `transparent` [H, W] in white.

    `wide` are the values of 16 bits of which `image` has the high bytes alone.
    """
    if transparent is not None:
        image.info.pop("transparency")
    if image.mode.startswith("I"):
        image = from_sixteen_bits(image)
    else:
        check_range(image)
        image = image if wide is None else rounded(image, wide)
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if image.mode == "P":
        # A palette entry is a colour; converting straight to grey would take it for a grey level.
        image = image.convert("RGB")
    converted = image.convert("L" if channels == 1 else "RGB")
    if transparent is None:
        return converted
    pixels = np.array(converted)
    pixels[transparent] = 255
    return Image.fromarray(pixels)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The largest centre square, resized to `size`; nothing is resampled that fits already."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first: `resize` with a box would blend in pixels outside of the box.
    image = image.crop((left, top, left + side, top + side))
    if side == size:
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS)
