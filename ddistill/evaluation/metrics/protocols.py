"""Published protocols of text-to-image models, by name, and the prompts that they sample.

A protocol says how many prompts are sampled, which real images they are compared with, how both
are brought to one size, and how the FID and the CLIP score are computed. Numbers of two protocols
cannot be compared: COCO-30k alone has two that differ in crop, filter, files and FID code. A new
protocol is one more entry of `PROTOCOLS`.
"""

import csv
import hashlib
import io
import os
from dataclasses import dataclass, fields

from ddistill.data.captions.texts import decode_text, normalise
from ddistill.errors import ConfigError, DataError, check_choice
from ddistill.evaluation.metrics.geometry import Geometry
from ddistill.runtime.files import expand


@dataclass(frozen=True)
class ImageProtocol:
    """How one published protocol samples and scores.

    Attributes:
      name: its key in `PROTOCOLS`.
      prompts: number of prompts, and of samples.
      real: number of real images.
      geometry: how samples and real images are brought to one size.
      stored: quality of the JPEG files in which samples are stored at their own size; 0 for files
        without loss. Samples that are JPEG files already are not encoded again.
      fid_resize: how the network of the FID sees images: one of `detector.RESIZES`.
      prefix: text before each prompt, for the CLIP score alone.
      clip: the checkpoint of the published CLIP scores.
      source: the paper and its files of prompts and real images.
    """

    name: str
    prompts: int
    real: int
    geometry: Geometry
    stored: int
    fid_resize: str
    prefix: str
    clip: str
    source: str


_ALL = (
    ImageProtocol(
        name="coco30k_dmd",
        prompts=30_000,
        real=40_504,
        geometry=Geometry(256, crop=True, filter="lanczos"),
        stored=0,
        fid_resize="clean",
        prefix="A photo depicts ",
        clip="open_clip ViT-g-14, laion2b_s12b_b42k",
        source="DMD2 (arXiv 2405.14867): captions_coco14_test.txt, all images of COCO val2014",
    ),
    ImageProtocol(
        name="coco30k_bk",
        prompts=30_000,
        real=40_504,
        geometry=Geometry(256, crop=False, filter="bicubic", jpeg=75),
        stored=75,
        fid_resize="torch",
        prefix="",
        clip="open_clip ViT-g-14, laion2b_s34b_b88k",
        source="BK-SDM (arXiv 2305.15798): metadata.csv, all images of COCO val2014",
    ),
)
PROTOCOLS: dict[str, ImageProtocol] = {protocol.name: protocol for protocol in _ALL}


def protocol_named(name: str, key: str) -> ImageProtocol:
    """The protocol of a name; raises `ConfigError` with the nearest one, `key` is the setting."""
    check_choice(key, name, PROTOCOLS)
    return PROTOCOLS[name]


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of a file, in its order.

    Attributes:
      name: of the file, without its path.
      texts: the prompts.
      files: the names of the images of the prompts, from a table; () for a list of prompts.
      digest: SHA-256 of the file.
    """

    name: str
    texts: tuple[str, ...]
    files: tuple[str, ...]
    digest: str


def read_prompt_file(path: str | os.PathLike, key: str, count: int = 0) -> Prompts:
    """Reads a text file with one prompt a line, or a table with the columns file_name and text.

    Args:
      path: a .csv file is a table.
      key: the setting, for messages.
      count: number of prompts that there must be; 0 for any number.

    Raises:
      ConfigError: `path` is "".
      DataError: the file cannot be read, a line is empty or no text, a column is missing, or there
        is another number of prompts.
    """
    if not str(path):
        raise ConfigError(f"{key} is missing: a text file with one prompt a line, or a .csv table.")
    file = expand(path)
    try:
        raw = file.read_bytes()
        content = decode_text(raw).removeprefix("\ufeff")
    except OSError as error:
        raise DataError(f"{key}={path}: it cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise DataError(f"{key}={path}: the file {error}.") from None
    table = file.suffix.lower() == ".csv"
    rows = _table(content, f"{key}={path}") if table else _lines(content)
    texts = tuple(_prompt(text, f"{key}={path}", i) for i, (_, text) in enumerate(rows, 1))
    if not texts or (count and len(texts) != count):
        wanted = f"the protocol has {count:,}" if count else "at least one is needed"
        raise DataError(f"{key}={path} has {len(texts):,} prompts; {wanted}.")
    files = tuple(name for name, _ in rows) if table else ()
    return Prompts(file.name, texts, files, hashlib.sha256(raw).hexdigest())


def _lines(content: str) -> list[tuple[str, str]]:
    lines = content.split("\n")
    return [("", line) for line in (lines[:-1] if not lines[-1].strip() else lines)]


def _table(content: str, where: str) -> list[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(content, newline=""))
    names = reader.fieldnames or ()
    missing = [name for name in ("file_name", "text") if name not in names]
    if missing:
        raise DataError(
            f"{where} has the columns {', '.join(names) or 'none'}; a table of prompts needs "
            "file_name and text."
        )
    return [(row["file_name"] or "", row["text"] or "") for row in reader]


def _prompt(text: str, where: str, number: int) -> str:
    try:
        found = normalise(text)
    except ValueError as error:
        raise DataError(f"{where}: prompt {number} {error}.") from None
    if not found:
        raise DataError(f"{where}: prompt {number} is empty; samples would be of other prompts.")
    return found


@dataclass(frozen=True)
class PromptedParts:
    """A protocol in a protocol string: everything that its numbers depend on, as single words.

    Attributes:
      protocol: the name.
      prompts: the file of the prompts, their number, and the first digits of its SHA-256.
      real: the real images, their number and the first digits of a hash; "none" without a FID.
      fit: the geometry of samples and real images.
      fid: the feature network with its resizing; "none" without a FID.
      clip_model: with the first digits of its SHA-256; "none" without a CLIP score.
      prefix: the text before prompts in the CLIP score, "_" for a space; "none" for no text.
    """

    protocol: str
    prompts: str
    real: str
    fit: str
    fid: str
    clip_model: str
    prefix: str

    def items(self) -> dict[str, str]:
        """The parts by name, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def string(self) -> str:
        """The parts as they follow in a protocol string."""
        return " ".join(f"{key}={value}" for key, value in self.items().items())


PROMPTED_PARTS = tuple(field.name for field in fields(PromptedParts))


def word(text: str) -> str:
    """A text as one word of a protocol; "none" for no text."""
    marks = str.maketrans({mark: "_" for mark in " \t\n=,;|`"})
    return text.strip().translate(marks) or "none"


def prompted_parts(
    protocol: ImageProtocol | None,
    prompts: Prompts,
    real: str = "",
    fid: str = "",
    clip: str = "",
) -> PromptedParts:
    """The parts of a protocol string.

    Args:
      protocol: None for prompts without a protocol: images are scored as they are.
      prompts: the prompts.
      real, fid, clip: descriptions of the real images and of the networks; "" for none.
    """
    return PromptedParts(
        protocol=protocol.name if protocol else "none",
        prompts=word(f"{prompts.name}:{len(prompts.texts)}@{prompts.digest[:8]}"),
        real=word(real),
        fit=str(protocol.geometry) if protocol else "none",
        fid=word(fid),
        clip_model=word(clip),
        prefix=word(protocol.prefix if protocol else ""),
    )
