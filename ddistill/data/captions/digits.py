"""The embedded captioned digits as a source of sets of latents."""

import io

import numpy as np
from PIL import Image

from ddistill.data.captions.choices import Choices
from ddistill.data.captions.rows import CaptionSource, Collector, Row
from ddistill.data.dataset import SPLITS
from ddistill.data.text_digits import CAPTION, DIGITS, TextDigitsSettings, load_text_digits
from ddistill.errors import check_choice


def read_digits(split: str, choices: Choices) -> CaptionSource:
    """The captioned digits of a split, white on black, as PNG files in memory.

    Raises:
      ConfigError: there is no such split.
    """
    check_choice("SOURCE=digits:SPLIT, SPLIT", split, SPLITS)
    dataset = load_text_digits(TextDigitsSettings(), split)
    grey = np.round((dataset.take(range(len(dataset))) + 1) * 127.5).astype(np.uint8)
    collector = Collector(choices.markup)
    for i, (text, label) in enumerate(zip(dataset.texts[CAPTION], dataset.labels)):
        row = Row(f"{split}/{i:04d}", text, int(label), i, grey[i].nbytes)
        collector.add(f"digits, {row.name}", row)

    def content(row: Row) -> bytes:
        assert isinstance(row.place, int)
        buffer = io.BytesIO()
        Image.fromarray(grey[row.place, ..., 0]).save(buffer, "PNG")
        return buffer.getvalue()

    return collector.source("digits", "the embedded digits", content, DIGITS)
