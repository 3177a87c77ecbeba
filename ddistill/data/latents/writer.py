"""Writes a set of latents, shard by shard; a killed writer loses only its current shard.

One process makes a set. Two that make the same one at a time write the same files.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddistill.data.captions.rows import CaptionSource, Problem, counted
from ddistill.data.encodings import LATENTS
from ddistill.data.images import usable_cores
from ddistill.data.latents.encoding import Encoding
from ddistill.data.latents.pipeline import LatentPipeline
from ddistill.data.latents.records import (
    NULL,
    PROBLEMS,
    SetRecord,
    SetSpec,
    ShardRecord,
    differences,
    read_record,
)
from ddistill.data.latents.shards import DamagedShard, Shard, open_shard, write_shard
from ddistill.errors import ConfigError, DataError, check_choice
from ddistill.interop.tensors import file_digest
from ddistill.runtime.files import write_files, write_text
from ddistill.runtime.leftovers import remove_leftovers

SPLITS_KEPT = ("none", "test", "all")
_MOST_BATCH = 65536
# Unreadable images of a shard that are printed one by one.
_SHOWN = 5
# Metadata of a shard.
_SPEC, _PROBLEMS, _CONTENT = "spec", "problems", "content"


@dataclass(frozen=True)
class SetOptions:
    """What a set stores, and how it is made.

    Attributes:
      image_size: side of the centre square in pixels, scaled with Lanczos; a multiple of the
        encoder's factor. For prompts alone, of the images that are to be made of them.
      sampled: store one draw of every image instead of the moments, half the size.
      flip: store the moments of mirrored images too, because mirroring does not commute with an
        autoencoder.
      states: store the states of all tokens, for hosts that are too small for the text encoder.
      pixels: "none", "test" or "all": the splits with the images themselves, which scores of
        decoded images are compared with.
      seed: of `sampled`.
      shard_mb: MiB of a shard, at most about that.
      batch_size: images that are encoded together. A value depends on it only where the networks
        round in another way for another batch.
      workers: threads that decode; 0 = cores + 2.
      name: of the set; "" for the name of its folder.
      licence: of the images and captions, in words; that of the pipeline is added.
    """

    image_size: int = 0
    sampled: bool = False
    flip: bool = False
    states: bool = False
    pixels: str = "test"
    seed: int = 0
    shard_mb: float = 512.0
    batch_size: int = 16
    workers: int = 0
    name: str = ""
    licence: str = ""

    def check(self, pipeline: LatentPipeline) -> None:
        """Raises `ConfigError` for options that cannot be with a pipeline."""
        check_choice("pixels", self.pixels, SPLITS_KEPT)
        for name, most in (("batch_size", _MOST_BATCH), ("shard_mb", float("inf"))):
            value = getattr(self, name)
            if not 0 < value <= most:
                raise ConfigError(f"{name}={value} cannot be: more than 0 is needed.")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} cannot be: 0 or more is needed.")
        factor = pipeline.encoder.factor
        if self.image_size < factor or self.image_size % factor:
            raise ConfigError(
                f"image_size={self.image_size} cannot be: the encoder {pipeline.encoder.name} needs"
                f" a multiple of {factor} pixels."
            )
        if self.states and pipeline.text_encoder is None:
            raise ConfigError("states=True needs a pipeline with a text encoder; it has none.")
        if self.sampled and pipeline.encoder.kind == LATENTS:
            raise ConfigError(
                f"sampled=True has no effect: the encoder {pipeline.encoder.name} gives latents and"
                " no moments. Leave it out."
            )


def make_set(
    sources: Mapping[str, CaptionSource],
    pipeline: LatentPipeline,
    folder: Path,
    options: SetOptions,
    say: Callable[[str], None] = lambda line: None,
) -> SetRecord:
    """Makes a set of latents, or makes what is missing of one.

    Every shard is written under a temporary name and renamed, and dataset.json gets the digests
    last. The same call continues after a kill, repairs damaged shards, and gives the same files.

    Args:
      sources: captioned images by split: "train", and "test" if there are any.
      pipeline: the networks.
      folder: of the set; other files in it are left alone.
      options: what is stored.
      say: told one line about every shard.

    Returns:
      What dataset.json says of the finished set.

    Raises:
      ConfigError: options that cannot be, or a folder with a set of other settings.
      DataError: a row cannot be encoded, or no image of a split can be read.
      OSError: a file cannot be written.
    """
    options.check(pipeline)
    _check_classes(sources)
    known = read_record(folder)
    # The name of a set stays when its folder is moved.
    name = options.name or (known.spec.name if known else folder.resolve().name)
    spec = _spec_of(sources, pipeline, name, options)
    _check_same(folder, known, spec)
    remove_leftovers(folder)
    if known is None:
        SetRecord(spec).write(folder)
    write_files(folder, pipeline.files)
    with ThreadPoolExecutor(options.workers or usable_cores() + 2, "ddistill-decode") as pool:
        encoding = Encoding(spec, pipeline, options.batch_size, pool)
        write_shard(folder / NULL, encoding.texts([""]), {_SPEC: spec.digest})
        shards, problems = {}, [p for source in sources.values() for p in source.problems]
        for split, source in sources.items():
            shards[split], found = _make_split(split, source, encoding, folder, say)
            problems += found
    text = "".join(f"{problem.line}\n" for problem in problems)
    write_text(folder / PROBLEMS, text)
    counts = Counter(problem.kind for problem in problems)
    record = SetRecord(spec, shards, counts)
    record.write(folder)
    one_each = f"; {folder / PROBLEMS} has a line for each" if problems else ""
    say(f"{counted(problems)}{one_each}")
    return record


def _spec_of(
    sources: Mapping[str, CaptionSource],
    pipeline: LatentPipeline,
    name: str,
    options: SetOptions,
) -> SetSpec:
    first = sources["train"]
    text_encoder = pipeline.text_encoder
    spec = SetSpec(
        name=name,
        image_size=options.image_size,
        encoder=pipeline.encoder,
        tokenizer=pipeline.tokenizer,
        text_encoder=text_encoder.digest if text_encoder else "",
        sampled=options.sampled,
        flip=options.flip,
        states=options.states,
        pixels=options.pixels,
        seed=options.seed,
        class_names=first.class_names,
        sources={
            split: {
                "kind": source.kind,
                "digest": source.digest,
                "rows": len(source),
                "images": source.content is not None,
            }
            for split, source in sources.items()
        },
        licence="; ".join(filter(None, (options.licence, pipeline.licence))),
    )
    limit = int(options.shard_mb * 2**20)
    return dataclasses.replace(
        spec,
        sources={
            split: {**known, "shard_rows": max(1, limit // _row_bytes(spec, pipeline, split))}
            for split, known in spec.sources.items()
        },
    )


def _row_bytes(spec: SetSpec, pipeline: LatentPipeline, split: str) -> int:
    """About how many bytes a row takes."""
    size = 2 * spec.tokenizer.length + 200
    values = int(np.prod(spec.encoder.latent_shape(spec.image_size)))
    latents = 1 if spec.stored_encoder.kind == LATENTS else 2
    size += 2 * values * latents * (2 if spec.flip else 1)
    if spec.with_pixels(split):
        size += spec.image_size**2 * spec.encoder.image_channels
    if pipeline.text_encoder is not None:
        states, pooled = pipeline.text_encoder.encode(
            np.zeros((1, spec.tokenizer.length), np.int32)
        )
        size += 2 * int(np.prod(pooled.shape))
        size += 2 * int(np.prod(states.shape)) if spec.states else 0
    return size


def _check_classes(sources: Mapping[str, CaptionSource]) -> None:
    """Raises `ConfigError` where the splits have other classes."""
    first = sources["train"]
    for source in sources.values():
        if source.class_names != first.class_names:
            raise ConfigError(
                f"{source.title} has the classes {', '.join(source.class_names[:5])}, and "
                f"{first.title} has {', '.join(first.class_names[:5])}. Both need the same ones."
            )


def _check_same(folder: Path, known: SetRecord | None, spec: SetSpec) -> None:
    """Raises `ConfigError` where a folder holds a set of other settings, or shards of none."""
    if known is None:
        strays = sorted(folder.glob("*-of-*.safetensors"))
        if strays:
            raise ConfigError(
                f"{folder} has {strays[0].name} and no dataset.json. Choose an empty folder, or "
                "remove these shards."
            )
        return
    found = differences(known.spec, spec)
    if found:
        raise ConfigError(
            f"{folder} holds a set of other settings: {'; '.join(found[:4])}. Choose another "
            "folder, or remove this one."
        )


def _make_split(
    split: str,
    source: CaptionSource,
    encoding: Encoding,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[tuple[ShardRecord, ...], list[Problem]]:
    """The shards of a split, made where they are missing or damaged, and their problems."""
    spec, records, problems = encoding.spec, [], list[Problem]()
    names = spec.shard_names(split)
    for i, name in enumerate(names):
        path, begun = folder / name, time.perf_counter()
        there = _usable(path, spec, say)
        if there is None:
            made = encoding.shard(split, source, i * spec.shard_rows(split))
            metadata = {_SPEC: spec.digest, _PROBLEMS: json.dumps(made.problems)}
            write_shard(path, made.arrays, metadata)
            there = open_shard(path)
            for problem in made.problems[:_SHOWN]:
                say(problem.line)
            if len(made.problems) > _SHOWN:
                say(f"... and {len(made.problems) - _SHOWN} more of this shard")
        rows = len(there.arrays["tokens"])
        seconds = time.perf_counter() - begun
        say(f"{split} {i + 1}/{len(names)}: {rows} rows in {seconds:.1f} s")
        problems += [Problem(*found) for found in json.loads(there.metadata[_PROBLEMS])]
        content = there.metadata[_CONTENT]
        records.append(ShardRecord(name, rows, file_digest(path), content))
    if not sum(record.rows for record in records):
        raise DataError(
            f"No image of the split '{split}' of {source.title} can be read, for example "
            f"{problems[0].line}."
        )
    return tuple(records), problems


def _usable(path: Path, spec: SetSpec, say: Callable[[str], None]) -> Shard | None:
    """The shard of an earlier call if it is whole, else None."""
    try:
        shard = open_shard(path)
    except DamagedShard as error:
        if path.exists():
            say(f"{error} It is made again.")
        return None
    if shard.metadata.get(_SPEC) != spec.digest or _PROBLEMS not in shard.metadata:
        say(f"{path} is of another set. It is made again.")
        return None
    if shard.metadata.get(_CONTENT) != shard.content:
        say(f"{path} has changed since it was written. It is made again.")
        return None
    return shard
