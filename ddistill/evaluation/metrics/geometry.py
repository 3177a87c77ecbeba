"""How published protocols bring images to one size, with Pillow, as the published programs do."""

import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ddistill.errors import check_choice

FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
# Pillow works outside of Python's lock.
_THREADS = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Geometry:
    """From an image of any size to a square one.

    Attributes:
      side: width and height of the result, in pixels.
      crop: whether the centre square is kept; otherwise the image is distorted.
      filter: one of `FILTERS`; Pillow's, which are antialiased.
      jpeg: quality of the JPEG file that the result passes through; 0 for none.
    """

    side: int
    crop: bool
    filter: str
    jpeg: int = 0

    def __post_init__(self) -> None:
        check_choice("filter", self.filter, FILTERS)

    def __str__(self) -> str:
        """As in "centre-lanczos-256" or "whole-bicubic-256-jpeg75"."""
        jpeg = f"-jpeg{self.jpeg}" if self.jpeg else ""
        return f"{'centre' if self.crop else 'whole'}-{self.filter}-{self.side}{jpeg}"

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "S S 3"]:
        """The pixels of an image in any mode that Pillow converts to RGB."""
        made = image.convert("RGB")
        if self.crop:
            made = centre_square(made, min(made.size))
        if made.size != (self.side, self.side):
            made = made.resize((self.side, self.side), FILTERS[self.filter])
        return np.asarray(through_jpeg(made, self.jpeg))


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The square of `side` pixels in the middle; half a pixel is rounded to the even place."""
    left, top = (round((length - side) / 2.0) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """What a JPEG file of an RGB image holds; the image itself for a quality of 0."""
    if not quality:
        return image
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def shortest_side(pixels: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "S S 3"]:
    """The image with its shorter side resized to `side` (bicubic), then the centre square.

    CLIP's preparation of images.
    """
    image = Image.fromarray(pixels)
    short = min(image.size)
    if short != side:
        width, height = (int(side * length / short) for length in image.size)
        image = image.resize((width, height), FILTERS["bicubic"])
    return np.asarray(centre_square(image, side))


def clean_resize(pixels: UInt8[np.ndarray, "H W 3"], side: int) -> Float[np.ndarray, "S S 3"]:
    """Antialiased bicubic resizing of each channel in float32, clipped to [0, 255].

    The resizing of arXiv 2104.11222 before the network of the FID, without rounding.
    """
    channels = [
        Image.fromarray(pixels[..., c].astype(np.float32)).resize((side, side), FILTERS["bicubic"])
        for c in range(pixels.shape[-1])
    ]
    return np.clip(np.stack([np.asarray(c) for c in channels], axis=-1), 0.0, 255.0)


def of_each(function: Callable[[T], np.ndarray], images: Iterable[T]) -> np.ndarray:
    """Applies a function to all images, several at a time, and stacks the results."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.stack(list(pool.map(function, images)))
