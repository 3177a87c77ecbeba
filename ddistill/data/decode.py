"""One encoded image to one uint8 array of the shape that was asked for."""

import io
import os
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

from ddistill.errors import ConfigError

# What a folder is searched for. Pillow reads more, but not all of that is pictures.
EXTENSIONS = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
ORIENTATION_TAG = 0x0112
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


def decode(source: str | os.PathLike | bytes, spec: ImageSpec) -> np.ndarray:
    """The first frame of an image as uint8 [H, W, C].

    EXIF orientation is applied, palettes are looked up, transparent parts are laid over white, and
    16-bit values are scaled to 8 bits.

    Args:
      source: path of a file, or its bytes.
      spec: the shape wanted.

    Raises:
      ValueError: it is broken, no image, or one without a fixed range of values (32-bit TIFF).
    """
    opened: IO[bytes] | str | os.PathLike = (
        io.BytesIO(source) if isinstance(source, bytes) else source
    )
    try:
        with Image.open(opened) as image:
            if spec.size:
                # Lets the JPEG decoder halve large photographs, down to twice the side wanted.
                image.draft(None, (2 * spec.size, 2 * spec.size))
            # Every pixel is read before the orientation is: PNG keeps its EXIF block at the end.
            image.load()
            upright = _upright(image)
            converted = _convert(upright, spec.channels)
    # Pillow's decoders raise whatever the damage leads to: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(_reason(error)) from error
    if spec.size:
        converted = _square(converted, spec.size)
    pixels = np.asarray(converted)
    return pixels[..., None] if spec.channels == 1 else pixels


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    """Turns the image as its EXIF orientation says; a damaged EXIF block is no reason to fail."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return image
    turns = _TURNS.get(orientation, ()) if isinstance(orientation, int) else ()
    for turn in turns:
        image = image.transpose(turn)
    return image


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """To "L" or "RGB" with 8 bits."""
    if image.mode.startswith("I"):
        image = _from_sixteen_bits(image)
    elif image.mode == "F":
        raise ValueError("32-bit float values have no fixed range; convert it to 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if image.mode == "P":
        # A palette entry is a colour; converting straight to grey would take it for a grey level.
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("32-bit integer values have no fixed range; convert it to 8 or 16 bits")
    # 65535 = 255 * 257, so white stays white; half is added to round.
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _square(image: Image.Image, size: int) -> Image.Image:
    """The largest centre square, resized to `size`; nothing is resampled that fits already."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cut out first: `resize` with a box would blend in what lies beside it.
    image = image.crop((left, top, left + side, top + side))
    if side == size:
        return image
    return image.resize((size, size), Image.Resampling.LANCZOS)
