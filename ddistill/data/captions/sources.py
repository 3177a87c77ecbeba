"""Opens captioned images by one text that names their layout and place."""

import os
from pathlib import Path

from ddistill.data.captions.choices import Choices
from ddistill.data.captions.coco import read_coco
from ddistill.data.captions.digits import read_digits
from ddistill.data.captions.folders import read_folder
from ddistill.data.captions.prompts import read_prompts
from ddistill.data.captions.rows import CaptionSource
from ddistill.data.captions.tars import read_tars
from ddistill.errors import ConfigError, nearest
from ddistill.runtime.files import expand

FORMS = (
    "FOLDER, coco:ANNOTATIONS.json:IMAGES, coco:ANNOTATIONS.json, tars:PATTERN, prompts:FILE, "
    "digits:train, digits:test"
)
_KINDS = ("folder", "coco", "tars", "prompts", "digits")
_PICKLES = (".pkl", ".pickle", ".pth", ".pt")
# A single letter before a colon is the drive of a path, as in C:\images.
_SHORTEST = 2


def open_source(text: str, choices: Choices) -> CaptionSource:
    """Reads captions and finds their images; no image is opened.

    Args:
      text: one of `FORMS`. A .tar file, and a folder that holds .tar files and no images at its
        top, is read as "tars:"; a .txt file as "prompts:".
      choices: where captions are, and which of several an image gets.

    Raises:
      ConfigError: the layout is not known or a pickle, or its captions are not chosen.
      DataError: the files are missing, damaged, or hold no caption.
    """
    kind, _, rest = text.partition(":")
    if not rest or len(kind) < _SHORTEST or os.path.exists(expand(text)):
        return _by_content(text, choices)
    if kind not in _KINDS:
        raise ConfigError(
            f"SOURCE={text!r}: {kind!r} is no layout.{nearest(kind, _KINDS)} Allowed: {FORMS}."
        )
    if kind == "coco":
        annotations, _, images = rest.partition(":")
        return read_coco(expand(annotations), expand(images) if images else None, choices)
    if kind == "digits":
        return read_digits(rest, choices)
    if kind == "tars":
        return read_tars(str(expand(rest)), choices)
    return (read_folder if kind == "folder" else read_prompts)(expand(rest), choices)


def _by_content(text: str, choices: Choices) -> CaptionSource:
    path = expand(text)
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".json":
        raise ConfigError(
            f"SOURCE={text!r} is a file of annotations: add the folder of its images, "
            f"coco:{text}:IMAGES, or write coco:{text} for its captions alone."
        )
    if path.is_file() and suffix == ".txt":
        return read_prompts(path, choices)
    if path.is_file() and suffix in _PICKLES:
        raise ConfigError(
            f"SOURCE={text!r} is a pickle, which can run any program when it is read. Write its "
            "captions to a .txt file, one a line, or to metadata.jsonl beside the images."
        )
    if path.is_file() or _holds_tars(path):
        return read_tars(str(path), choices)
    return read_folder(path, choices)


def _holds_tars(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = [entry.name.lower() for entry in os.scandir(folder)]
    return any(name.endswith(".tar") for name in names) and not any(
        name.endswith((".png", ".jpg", ".jpeg", ".webp")) for name in names
    )
