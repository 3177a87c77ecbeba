"""Pixels of images: rounding to uint8, and peak signal-to-noise ratio."""

import numpy as np


def quantise(images: np.ndarray) -> np.ndarray:
    """Rounds float images in [-1, 1] to uint8 as EDM does for FID: clip, x * 127.5 + 128, floor.

    uint8 images do not change. x / 127.5 - 1 is the inverse up to rounding.

    Raises:
      ValueError: images are integers other than uint8, or values are not finite.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "biuc":
        raise ValueError(f"Images are {images.dtype}; uint8 or floats in [-1, 1] are needed.")
    if images.dtype.itemsize < 4:
        images = images.astype(np.float32)  # half precision has too few digits for the product
    if not np.isfinite(images).all():
        raise ValueError("Images hold values that are not finite; the sampler has diverged.")
    return np.clip(np.clip(images, -1, 1) * 127.5 + 128, 0, 255).astype(np.uint8)


def psnr(images: np.ndarray, reference: np.ndarray, limit: float = 100.0) -> float:
    """Mean over images of `psnr_of_each`."""
    return float(psnr_of_each(images, reference, limit).mean())


def psnr_of_each(images: np.ndarray, reference: np.ndarray, limit: float = 100.0) -> np.ndarray:
    """Peak signal-to-noise ratio `[N]` in dB of images in [-1, 1] (peak 2).

    Args:
      images: [N, H, W, C] float in [-1, 1].
      reference: [N, H, W, C] float in [-1, 1]; image i starts from the same noise.
      limit: value for equal images, which would otherwise make a mean infinite.
    """
    images, reference = np.asarray(images, np.float64), np.asarray(reference, np.float64)
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(
            f"PSNR compares equal shapes [N, H, W, C]; got {images.shape} and {reference.shape}."
        )
    mse = np.square(images - reference).mean(axis=(1, 2, 3))
    return 10 * np.log10(4.0 / np.maximum(mse, 4.0 * 10 ** (-limit / 10)))
