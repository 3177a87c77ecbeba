"""dataset.json: what a set was made of and by, and the digests of its shards."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ddistill.data.encodings import ENCODER, TOKENIZER, EncoderFacts, TokenizerFacts
from ddistill.errors import CheckpointError, DataError
from ddistill.runtime.files import DamagedFile, read_object, write_json
from ddistill.runtime.schemas import (
    COUNT,
    FLAG,
    OBJECT,
    TEXT,
    WHOLE,
    Schema,
    list_of,
    map_of,
    object_of,
    shown,
)
from ddistill.typing import JsonRecord

DATASET, PROBLEMS, NULL = "dataset.json", "problems.txt", "null.safetensors"
VERSION = 1
# Arrays of shards, beside the captions. Each has a row for every caption.
MOMENTS, LATENTS, FLIPPED = "moments", "latents", "flipped"
TOKENS, LABELS, POOLED, STATES, PIXELS = "tokens", "labels", "pooled", "states", "pixels"
_AGAIN = "Run the command that made it again: it makes damaged and missing shards alone."


@dataclass(frozen=True)
class SetSpec:
    """Everything that the rows of a set depend on.

    Attributes:
      name: of the set.
      image_size: side of the centre square in pixels, scaled with Lanczos; for prompts alone the
        side of the images that are to be made of them.
      encoder, tokenizer: facts of the networks.
      text_encoder: digest of the text encoder of pooled and other states; "" for none.
      sampled: whether one latent a row was drawn from the moments, with `seed`.
      flip: whether the moments of mirrored images are stored too.
      states: whether the states of all tokens are stored.
      pixels: "none", "test" or "all": the splits with the images themselves.
      seed: of `sampled`.
      class_names: one name a class.
      sources: by split the kind of its source, its digest, its number of rows, whether they have
        images, and how many rows a shard is made of (`shard_rows`).
      licence: of the pipeline and of the images, in words.
    """

    name: str
    image_size: int
    encoder: EncoderFacts
    tokenizer: TokenizerFacts
    text_encoder: str
    sampled: bool
    flip: bool
    states: bool
    pixels: str
    seed: int
    class_names: tuple[str, ...]
    sources: Mapping[str, JsonRecord]
    licence: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def stored_encoder(self) -> EncoderFacts:
        """The encoder, with the kind of what is stored."""
        if not self.sampled:
            return self.encoder
        return EncoderFacts(**{**asdict(self.encoder), "kind": LATENTS})

    def has_images(self, split: str) -> bool:
        """Whether the rows of a split have images."""
        return bool(self.sources[split]["images"])

    def shard_rows(self, split: str) -> int:
        """Rows of the source that a shard is made of; it holds those with a readable image."""
        return int(self.sources[split]["shard_rows"])

    def with_pixels(self, split: str) -> bool:
        """Whether the images of a split are stored."""
        return self.pixels in ("all", split)

    def shard_names(self, split: str) -> list[str]:
        """The files of a split in the order of its rows."""
        count = -(-self.sources[split]["rows"] // self.shard_rows(split))
        return [f"{split}-{i:05d}-of-{count:05d}.safetensors" for i in range(count)]

    def to_json(self) -> JsonRecord:
        """An object as `_SPEC` describes it."""
        return {
            **asdict(self),
            "encoder": self.encoder.to_json(),
            "tokenizer": self.tokenizer.to_json(),
            "class_names": list(self.class_names),
        }

    @classmethod
    def from_json(cls, found: Mapping) -> "SetSpec":
        """The spec in an object as `_SPEC` describes it."""
        return cls(
            **{
                **{name: found[name] for name in cls.__dataclass_fields__},
                "encoder": EncoderFacts.from_json(found["encoder"]),
                "tokenizer": TokenizerFacts.from_json(found["tokenizer"]),
                "class_names": tuple(found["class_names"]),
            }
        )


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard.

    Attributes:
      name: of the file.
      rows: how many it holds.
      sha256: of the file.
      content: of its arrays, see `ddistill.data.latents.shards.content_digest`.
    """

    name: str
    rows: int
    sha256: str
    content: str


@dataclass(frozen=True)
class SetRecord:
    """The content of dataset.json.

    Attributes:
      spec: what the rows of the set depend on.
      splits: by split its shards; None while the set is being made.
      problems: number of problems by kind.
    """

    spec: SetSpec
    splits: Mapping[str, tuple[ShardRecord, ...]] | None = None
    problems: Mapping[str, int] | None = None

    def write(self, folder: Path) -> None:
        """Writes dataset.json of a folder."""
        splits = None
        if self.splits is not None:
            splits = {name: [asdict(s) for s in shards] for name, shards in self.splits.items()}
        content = {
            "format": "ddistill latents",
            "version": VERSION,
            "spec": self.spec.to_json(),
            "splits": splits,
            "problems": dict(self.problems or {}),
        }
        write_json(folder / DATASET, content)


def read_record(folder: Path) -> SetRecord | None:
    """The record of a set that may be unfinished; None where there is no dataset.json.

    Raises:
      DataError: it is damaged, of another program, or of a later version.
    """
    path = folder / DATASET
    try:
        found = read_object(path, _RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (DamagedFile, CheckpointError) as error:
        raise DataError(f"{error}, so that {folder} is no set of latents.") from None
    spec, splits = SetSpec.from_json(found["spec"]), found.get("splits")
    if splits is None:
        return SetRecord(spec)
    shards = {
        name: tuple(ShardRecord(**{k: s[k] for k in _SHARD.needed}) for s in listed)
        for name, listed in splits.items()
    }
    for split, listed in shards.items():
        if [shard.name for shard in listed] != spec.shard_names(split):
            raise DataError(f"{path} names other shards of '{split}' than its rows need. {_AGAIN}")
    return SetRecord(spec, shards, found.get("problems"))


def read_finished(folder: Path) -> SetRecord:
    """The record of a finished set.

    Raises:
      DataError: there is none, or it is not finished; errors as of `read_record`.
    """
    record = read_record(folder)
    if record is None:
        raise DataError(
            f"{folder} is no set of latents: it has no {DATASET}. `ddistill data latents SOURCE "
            f"{folder}` makes one."
        )
    if record.splits is None:
        raise DataError(f"{folder} is not finished. {_AGAIN}")
    return record


def differences(there: SetSpec, wanted: SetSpec) -> list[str]:
    """In words, the settings in which two sets differ."""
    before, now = _flat(there.to_json()), _flat(wanted.to_json())
    return [
        f"{key} is {shown(before.get(key))} there and {shown(now.get(key))} now"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]


def _flat(found: Mapping, path: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in found.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


_SOURCE = Schema({"kind": TEXT, "digest": TEXT, "rows": COUNT, "images": FLAG, "shard_rows": COUNT})
_SPEC = Schema(
    {
        "encoder": object_of(ENCODER),
        "tokenizer": object_of(TOKENIZER),
        **dict.fromkeys(("name", "text_encoder", "pixels", "licence"), TEXT),
        **dict.fromkeys(("sampled", "flip", "states"), FLAG),
        "image_size": COUNT,
        "seed": WHOLE,
        "class_names": list_of(TEXT, 1),
        "sources": map_of(object_of(_SOURCE), 1),
    }
)
_SHARD = Schema({"name": TEXT, "rows": WHOLE, "sha256": TEXT, "content": TEXT})


def _record_agrees(found: Mapping) -> str:
    if found["version"] != VERSION:
        return f"key 'version' is {found['version']}, and this ddistill reads {VERSION}"
    splits = found.get("splits")
    if splits is None:
        return ""
    listed = list_of(object_of(_SHARD), 1)
    if not isinstance(splits, Mapping) or not all(map(listed.fits, splits.values())):
        return f"key 'splits' is {shown(splits)}, and {map_of(listed).called} is needed"
    if splits.keys() != found["spec"]["sources"].keys():
        return "key 'splits' has other splits than 'spec'"
    return ""


_RECORD = Schema(
    {"version": WHOLE, "spec": object_of(_SPEC)}, {"problems": OBJECT}, agree=_record_agrees
)
