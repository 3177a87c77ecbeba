"""Pictures written to files, and the data sets that folders of them are."""

import numpy as np
from PIL import Image

from ddistill import data


def picture(seed: int, side: int = 16, channels: int = 3) -> np.ndarray:
    """A smooth picture, so that JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    base = np.linspace(0, 200, side)[:, None, None] + rng.uniform(0, 50, channels)
    pixels = np.broadcast_to(base, (side, side, channels)).astype(np.uint8)
    return pixels if channels > 1 else pixels[..., 0]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def noisy(path, seed: int = 0, side: int = 24):
    """A JPEG large enough that half of it still opens."""
    rng = np.random.default_rng(seed)
    return save(path, rng.integers(0, 255, (side, side, 3)).astype(np.uint8), quality=95)


def load(path, split="train", **changes):
    return data.load({"name": "folder", "path": str(path), "test_fraction": 0.0, **changes}, split)


def only(path, **changes) -> np.ndarray:
    dataset = load(path, **changes)
    assert len(dataset) == 1
    return dataset.images[0]
