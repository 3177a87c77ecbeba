"""The data source "latents": sets that `ddistill data latents` has made."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from ddistill.data.dataset import SPLITS, Dataset, ImageStore, NoImages, Reading, identify
from ddistill.data.encodings import MOMENTS as KIND_MOMENTS
from ddistill.data.flip import Mirroring
from ddistill.data.latents.records import (
    FLIPPED,
    LABELS,
    LATENTS,
    MOMENTS,
    PIXELS,
    TOKENS,
    SetRecord,
    SetSpec,
    ShardRecord,
    read_finished,
)
from ddistill.data.latents.shards import DamagedShard, Rows, Shard, Texts, open_shard
from ddistill.data.memo import Memo
from ddistill.data.scan import digest, file_of
from ddistill.data.tokenized import identify_tokens
from ddistill.errors import ConfigError, DataError, nearest
from ddistill.interop.pipeline_folders import VAE
from ddistill.interop.tensors import file_digest
from ddistill.interop.tokenizer import MERGES
from ddistill.runtime.files import expand
from ddistill.runtime.schemas import FLAG, Schema

_REPAIR = "`ddistill data latents` with the same arguments makes this shard again."
_CHECKED = Schema({"whole": FLAG})
# MiB from which the check of the digests is worth a line.
_WORTH_SAYING = 4096


@dataclass(frozen=True)
class LatentsSettings:
    """Data settings of `latents`.

    Attributes:
      name: "latents".
      path: the folder that `ddistill data latents` has made.
      flip: read the mirrored images too, as further examples; None = if the set has them.
      in_memory_limit_mb: larger sets (MiB as stored) are read when batches are made.
    """

    name: str = "latents"
    path: str = ""
    flip: bool | None = None
    in_memory_limit_mb: float = 2048.0


def load_latents(settings: LatentsSettings, split: str) -> Dataset:
    """Opens one split of a set of latents, in the order of its rows.

    Digests of the shards are checked once, and again after a file has changed.

    Raises:
      ConfigError: a setting that cannot be.
      DataError: the set is missing, unfinished or damaged, or lacks the split.
    """
    root = _root(settings)
    record = read_finished(root)
    spec, shards = record.spec, _open(root, record, split)
    mirrored = _mirrored(settings, spec)
    twice = [*shards, *shards] if mirrored.on else shards
    labels = np.concatenate([shard.arrays[LABELS] for shard in twice])
    tokens = np.concatenate([shard.arrays[TOKENS] for shard in twice]).astype(np.int32)
    images, encoder = _images(root, shards, spec, split, mirrored.on), spec.stored_encoder
    shape = encoder.latent_shape(spec.image_size)
    contents = "\n".join(shard.metadata["content"] for shard in shards)
    limit = settings.in_memory_limit_mb * 2**20
    identity = {
        **identify(
            hashlib.sha256(contents.encode()).hexdigest(),
            labels,
            shape,
            len(spec.class_names),
            False,
        ),
        "mirrored_rows": mirrored.on,
        **identify_tokens(tokens, spec.tokenizer),
        "encoder": f"{encoder.kind} {encoder.scaling!r} {encoder.shift!r} {encoder.digest}",
    }
    return Dataset(
        name=spec.name,
        images=_in_memory(images, limit),
        labels=labels,
        num_classes=len(spec.class_names),
        class_names=spec.class_names,
        provenance=_provenance(spec, split, len(labels), str(identity["pixels"])),
        identity=identity,
        reading=Reading(f"latents {root}", _splits(record), mirrored.why, _left_out(record)),
        texts={"caption": Texts(twice)},
        tokens=tokens,
        tokenizer=spec.tokenizer,
        encoder=encoder,
        pictures=_pictures(shards, mirrored.on),
        files=_files(root),
    )


def stored_rows(path: str | Path, split: str, name: str) -> Rows:
    """Rows of one array of a set, such as "pooled" [N, d] or "states" [N, L, D], read on use.

    Args:
      path: the folder of the set.
      split: "train" or "test".
      name: of the array, as shards have it.

    Raises:
      DataError: the set is missing, unfinished or damaged, or has no such array.
    """
    root = expand(path)
    shards = _open(root, read_finished(root), split)
    there = set.intersection(*(set(shard.arrays) for shard in shards))
    if name not in there:
        raise DataError(
            f"{root} has no array {name!r} for '{split}'.{nearest(name, there)} Arrays there: "
            f"{', '.join(sorted(there))}."
        )
    return Rows([shard.arrays[name] for shard in shards])


def count_latents(settings: LatentsSettings, split: str) -> int:
    """Number of rows of a split, without those of mirrored images."""
    return sum(shard.rows for shard in _records(_root(settings), split))


def describe_latents(settings: LatentsSettings) -> str:
    """One line: rows, shapes and networks of a set."""
    root = _root(settings)
    record = read_finished(root)
    spec, encoder = record.spec, record.spec.stored_encoder
    shape = "x".join(map(str, encoder.latent_shape(spec.image_size)))
    return (
        f"latents {root}: {_splits(record)}; {encoder.kind} of {shape} by {encoder}, "
        f"{spec.tokenizer.length} tokens by {spec.tokenizer.name}"
    )


def check_encoder(dataset: Dataset, digest: str, title: str) -> None:
    """Raises `ConfigError` where latents are not those of the encoder of a teacher.

    Args:
      dataset: of latents.
      digest: of the teacher's encoder.
      title: the teacher in messages.
    """
    encoder = dataset.encoder
    if encoder is not None and encoder.digest != digest:
        raise ConfigError(
            f"The latents of {dataset.name} were made by the encoder {encoder}, and {title} has "
            f"the encoder {digest[:16]}. Make the set with the teacher: ddistill data latents."
        )


def _root(settings: LatentsSettings) -> Path:
    if not settings.path:
        raise ConfigError(
            "data.path is missing: set --config.data.path=FOLDER, a folder that `ddistill data "
            "latents` has made."
        )
    return expand(settings.path)


def _records(root: Path, split: str) -> Sequence[ShardRecord]:
    record = read_finished(root)
    assert record.splits is not None
    if split not in record.splits:
        raise DataError(
            f"{root} has no split '{split}'. Make the set with --test-fraction or --test, in "
            "another folder."
        )
    return record.splits[split]


def _open(root: Path, record: SetRecord, split: str) -> list[Shard]:
    """The shards of a split that hold rows, checked against their digests."""
    records = _records(root, split)
    shards = []
    for known in records:
        try:
            shard = open_shard(root / known.name)
        except DamagedShard as error:
            raise DamagedShard(f"{error} {_REPAIR}") from None
        if (
            shard.metadata.get("spec") != record.spec.digest
            or shard.metadata.get("content") != known.content
            or any(name not in shard.arrays for name in (TOKENS, LABELS))
            or len(shard.arrays[TOKENS]) != known.rows
        ):
            raise DamagedShard(f"{shard.path} is a shard of another set. {_REPAIR}")
        shards.append(shard)
    _check_digests(root, records, split)
    return [shard for shard in shards if len(shard.arrays[TOKENS])]


def _check_digests(root: Path, records: Sequence[ShardRecord], split: str) -> None:
    """Reads all shards of a split once; the outcome is remembered until a file changes."""
    paths = [root / record.name for record in records]
    known = "".join(record.sha256 for record in records)
    memo = Memo(f"{root.resolve()} {split} {digest([*map(file_of, paths)], times=True)} {known}")
    if memo.recall(_CHECKED):
        return
    size = sum(path.stat().st_size for path in paths) >> 20
    if size >= _WORTH_SAYING:
        logging.warning("Checking %d MiB of latents in %s once.", size, root)
    for record, path in zip(records, paths):
        if file_digest(path) != record.sha256:
            raise DamagedShard(f"{path} has changed since it was written. {_REPAIR}")
    memo.remember({"whole": True})


def _mirrored(settings: LatentsSettings, spec: SetSpec) -> Mirroring:
    if settings.flip and not spec.flip:
        raise ConfigError(
            "data.flip=True cannot be: the set has no mirrored images, and mirroring latents does "
            "not mirror images. Make the set with --flip, or leave data.flip out."
        )
    if spec.flip and settings.flip is not False:
        return Mirroring(True, "mirrored images are rows of their own")
    why = f"data.flip={settings.flip}" if spec.flip else "the set has no mirrored images"
    return Mirroring(False, why)


def _images(
    root: Path, shards: Sequence[Shard], spec: SetSpec, split: str, mirrored: bool
) -> Rows | NoImages:
    encoder = spec.stored_encoder
    if not spec.has_images(split):
        rows = sum(len(shard.arrays[TOKENS]) for shard in shards)
        return NoImages((rows, *encoder.latent_shape(spec.image_size)), str(root))
    stored = MOMENTS if encoder.kind == KIND_MOMENTS else LATENTS
    parts = [shard.arrays[stored] for shard in shards]
    return Rows(parts + [s.arrays[FLIPPED] for s in shards] if mirrored else parts)


def _in_memory(images: Rows | NoImages, limit: float) -> np.ndarray | ImageStore:
    """The rows as one array if they take at most `limit` bytes."""
    if isinstance(images, Rows):
        size = int(np.prod(images.shape)) * images.dtype.itemsize
        return images.all() if size <= limit else images
    return images


def _pictures(shards: Sequence[Shard], mirrored: bool) -> Rows | None:
    """The images themselves, where every shard has them."""
    if mirrored or any(PIXELS not in shard.arrays for shard in shards):
        return None
    return Rows([shard.arrays[PIXELS] for shard in shards])


def _files(root: Path) -> dict[str, str | Path]:
    """The files of the tokenizer and of the autoencoder, as far as the set keeps them."""
    found = [root / MERGES, *sorted((root / VAE).glob("*"))]
    return {path.relative_to(root).as_posix(): path for path in found if path.is_file()}


def _splits(record: SetRecord) -> str:
    assert record.splits is not None
    there = [split for split in SPLITS if split in record.splits]
    rows = {split: sum(s.rows for s in record.splits[split]) for split in there}
    kinds = {name: record.spec.sources[name]["kind"] for name in rows}
    return ", ".join(f"{n} {name} rows ({kinds[name]})" for name, n in rows.items())


def _left_out(record: SetRecord) -> tuple[str, ...]:
    return tuple(f"{n} x {kind}" for kind, n in (record.problems or {}).items())


def _provenance(spec: SetSpec, split: str, rows: int, pixels: str) -> str:
    encoder = spec.stored_encoder
    licence = f", licence: {spec.licence}" if spec.licence else ""
    return (
        f"{encoder.kind} by {encoder}, {split} split, {rows} rows of "
        f"{spec.sources[split]['kind']}, {spec.image_size}x{spec.image_size} centre crop, "
        f"Lanczos, tokens by {spec.tokenizer.name}, sha256 of shards {pixels[:16]}{licence}"
    )
