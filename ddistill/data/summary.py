"""What a run is about to train on, in one block: what was read, how, and what was left out."""

from collections.abc import Sequence

import numpy as np

from ddistill.data.dataset import Dataset
from ddistill.text import printable

# Classes that are listed one by one, and how many of the first and last ones of more classes.
_ALL, _FIRST, _LAST = 24, 12, 3


def summary(dataset: Dataset) -> list[str]:
    """Lines on the training images: source, classes in their order, split, mirroring, left out."""
    reading = dataset.reading
    height, width, channels = dataset.image_shape
    kind = f"training images of {width}x{height}, {'grey' if channels == 1 else 'RGB'}"
    if dataset.encoder is not None:
        stored = dataset.encoder.kind if dataset.has_images else "prompts for latents"
        kind = f"{stored} of {height}x{width}x{channels} by {dataset.encoder.name}"
    # Mirrored images of a set of latents are examples, which training does not mirror.
    mirrored = dataset.hflip or bool(dataset.identity.get("mirrored_rows"))
    lines = [
        ("data", f"{reading.source or dataset.name}: {len(dataset)} {kind}"),
        ("classes", _classes(dataset)),
        ("split", reading.split or "not known"),
        ("mirrored", f"{'yes' if mirrored else 'no'}: {reading.flip or 'as it was set'}"),
        ("left out", "; ".join(reading.left_out) or "nothing"),
    ]
    if reading.further:
        have = "file has" if reading.further == 1 else "files have"
        lines.append(("frames", f"{reading.further} {have} further frames; the first is used"))
    if dataset.tokenizer is not None:
        known = dataset.tokenizer
        lines.append(("captions", f"{known.length} tokens each, by the tokenizer {known.name}"))
    elif dataset.texts:
        lines.append(("texts", f"{', '.join(dataset.texts)}: kept by name, not trained on"))
    missing = np.setdiff1d(np.arange(dataset.num_classes), dataset.labels)
    if len(missing):
        named = [f"{c}: {dataset.class_names[c]}" for c in missing]
        lines.append(("", f"WITHOUT A TRAINING IMAGE: {_some(named)}"))
    return [f"{title:<10}{printable(text)}" for title, text in lines]


def _classes(dataset: Dataset) -> str:
    if dataset.num_classes == 1:
        return f"one ({dataset.class_names[0]}), which is to say no labels"
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    named = [f"{i}: {name}" for i, name in enumerate(dataset.class_names)]
    spread = f"{counts.min()} to {counts.max()} images each"
    return f"{dataset.num_classes} in this order: {_some(named)} ({spread})"


def _some(named: Sequence[str]) -> str:
    if len(named) <= _ALL:
        return ", ".join(named)
    return ", ".join((*named[:_FIRST], "...", *named[-_LAST:]))
