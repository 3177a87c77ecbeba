"""Image sets of TensorFlow Datasets that are prepared on this machine, read without TensorFlow.

Sets are read from array_record files. Splits of our own are lists of indices and never TFDS's slice
notation, which some formats take and ignore.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ddistill.data.dataset import SPLITS, Dataset, Reading, identify
from ddistill.data.decode import ImageSpec, decode, decoding
from ddistill.data.flip import RECIPES, decide_flip
from ddistill.data.images import Shape, Source, open_images, usable_cores
from ddistill.data.listing import by_hash_in_words, check_fraction, empty_split, held_out
from ddistill.data.memo import Memo
from ddistill.data.names import SPLIT_WORDS, TEST, TRAIN, VALIDATION
from ddistill.data.samples import has_sixteen_bit_colours
from ddistill.data.tfds_features import NO_LABELS, Keys, choose_features
from ddistill.data.tfds_files import FORMAT, Prepared, check_format, check_shards, find
from ddistill.errors import DataError
from ddistill.runtime.schemas import FLAG, TEXT, WHOLE, Schema, list_of

WORTH_REMEMBERING = 100_000


@dataclass(frozen=True)
class TfdsSettings:
    """Data settings of `tfds`.

    Attributes:
      name: "tfds".
      path: name of the set, such as "cifar10", "name/config" or "name:1.0.0", or its folder.
      data_dir: where sets are prepared; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_key: the feature with the image; "" = "image", or the only image there is.
      label_key: the feature with the class; "" = "label", or the only class there is, if any;
        "none" = use no classes.
      image_size: side of the centre square in pixels; 0 = the images' own size, if they share one.
      channels: 1 (grey) or 3 (RGB); 0 = as the set declares it.
      flip: mirror at random while training; None = as the published recipe of the set does
        (`ddistill.data.flip.RECIPES`), and no for all other sets.
      test_fraction: share of examples for testing where the set has no test or validation split.
      in_memory_limit_mb: larger sets (MiB as uint8) are decoded when batches are made.
      workers: threads that decode; 0 = cores + 2.
    """

    name: str = "tfds"
    path: str = ""
    data_dir: str = ""
    image_key: str = ""
    label_key: str = ""
    image_size: int = 0
    channels: int = 0
    flip: bool | None = None
    test_fraction: float = 0.1
    in_memory_limit_mb: float = 2048.0
    workers: int = 0


class _Builder(Protocol):
    """What is used of `tfds.core.DatasetBuilder`, which has no type information."""

    @property
    def info(self) -> Any:
        """`DatasetInfo`, with the features."""
        ...

    def as_data_source(
        self, *, split: str, decoders: Mapping[str, object]
    ) -> Sequence[Mapping[str, Any]]:
        """Opens the examples of a split by number."""
        ...


@dataclass(frozen=True)
class _Own:
    """The set's own split that ours is taken from.

    Attributes:
      name: its name.
      count: its examples.
      shared: whether a share of its examples is held out, because no split is for testing.
    """

    name: str
    count: int
    shared: bool


@dataclass(frozen=True)
class _Chosen:
    """The examples of one of our splits.

    Attributes:
      records: of the set's own split.
      numbers: int64 [N], which of them.
      labels: int32 [N].
      digest: SHA-256 of the encoded images in this order.
      sixteen_bits: whether images are among them with colours, or grey and alpha, of 16 bits.
      how: how the set was split, in words.
    """

    records: "_Records"
    numbers: np.ndarray
    labels: np.ndarray
    digest: str
    sixteen_bits: bool
    how: str


def load_tfds(settings: TfdsSettings, split: str) -> Dataset:
    """Opens one split of a prepared TFDS set, in the order of its files.

    Raises:
      ConfigError: a setting that cannot be, such as a feature that the set has not.
      DataError: the set is missing or in another format (the message has the command that
        prepares it), is damaged, or has no images for the split.
    """
    check_fraction(settings.test_fraction)
    found = find(settings.path, settings.data_dir)
    name = str(found.info["name"])
    flip = decide_flip(settings.flip, RECIPES.get(name, ""))
    own = _own_split(found, split)
    prepared = _open(settings, found)
    keys = prepared.keys
    spec = ImageSpec(settings.image_size, settings.channels or keys.channels)
    chosen = _choose_examples(prepared, own, split, settings.test_fraction)
    opened = open_images(
        _source(chosen.records, chosen.numbers, spec, keys),
        limit_mb=settings.in_memory_limit_mb,
        skip=False,
        workers=prepared.workers,
        check=False,
    )
    shape = opened.images.shape[1:]
    # Large sets are not decoded here: the encoded images and the decoding settings identify the
    # pixels of all sets.
    pixels = f"{chosen.digest} {spec}, decoding {decoding(chosen.sixteen_bits)}"
    count = len(chosen.numbers)
    return Dataset(
        name=name,
        images=opened.images,
        labels=chosen.labels,
        num_classes=len(keys.classes),
        class_names=keys.classes,
        hflip=flip.on,
        provenance=(
            f"TFDS {found.title}, {split} split ({count} examples of '{own.name}'), {spec}, "
            f"image '{keys.image}', label '{keys.label or NO_LABELS}', "
            f"sha256 of encoded images {chosen.digest[:16]}"
        ),
        identity=identify(pixels, chosen.labels, shape, len(keys.classes), flip.on),
        reading=Reading(f"TFDS {found.title} in {found.folder}", chosen.how, flip.why),
    )


def count_tfds(settings: TfdsSettings, split: str) -> int:
    """Number of examples of a split.

    Raises:
      DataError: the set is missing or has no images for the split.
    """
    check_fraction(settings.test_fraction)
    found = find(settings.path, settings.data_dir)
    own = _own_split(found, split)
    if not own.shared:
        return own.count
    chosen = _choose_examples(_open(settings, found), own, split, settings.test_fraction)
    return len(chosen.numbers)


def describe_tfds(settings: TfdsSettings) -> str:
    """One line: where the set is and how many examples its splits have."""
    found = find(settings.path, settings.data_dir)
    check_format(found)
    splits = ", ".join(f"{n} {name}" for name, n in found.splits.items())
    return f"TFDS {found.title} in {found.folder}: {splits} examples"


@dataclass(frozen=True)
class _Opened:
    """A prepared set that is open.

    Attributes:
      builder: TFDS's reader of its folder.
      found: its folder and metadata.
      keys: the features that are read.
      workers: threads that read.
    """

    builder: _Builder
    found: Prepared
    keys: Keys
    workers: int


class _Records:
    """Encoded images and labels of one of the set's own splits, by index; safe between threads."""

    def __init__(self, builder: _Builder, found: Prepared, split: str, keys: Keys):
        from tensorflow_datasets import decode as tfds_decode

        # Our own decoder takes the bytes: it runs in threads and crops and resizes at once.
        skip = {keys.image: tfds_decode.SkipDecoding()}
        self._examples = builder.as_data_source(split=split, decoders=skip)
        self._keys, self.where = keys, f"{found.folder} '{split}'"

    def __len__(self) -> int:
        return len(self._examples)

    def image(self, number: int) -> bytes:
        """The encoded image of an example."""
        return self._example(number)[self._keys.image]

    def look_at_all(self, workers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels int32 [N], zeros where the set has none; of images SHA-256, uint8 [N, 32], and
        whether they store colours of 16 bits, bool [N].

        Reads every record.
        """
        labels = np.zeros(len(self), np.int32)
        digests = np.zeros((len(self), 32), np.uint8)
        deep = np.zeros(len(self), bool)

        def read(start: int) -> None:
            for number in range(start, min(start + 1024, len(self))):
                example = self._example(number)
                if self._keys.label:
                    labels[number] = int(example[self._keys.label])
                image = example[self._keys.image]
                digests[number] = np.frombuffer(hashlib.sha256(image).digest(), np.uint8)
                deep[number] = has_sixteen_bit_colours(image)

        with ThreadPoolExecutor(workers, "ddistill-records") as pool:
            list(pool.map(read, range(0, len(self), 1024)))
        return labels, digests, deep

    def _example(self, number: int) -> Mapping[str, Any]:
        try:
            example = self._examples[number]
        # The readers raise RuntimeError, ValueError or protobuf's own error, as the damage has it.
        except Exception as error:
            raise DataError(f"Example {number} of {self.where} is damaged: {error}.") from error
        for key in filter(None, (self._keys.image, self._keys.label)):
            # A file that is cut off reads as empty records.
            if example[key] is None:
                raise DataError(f"Example {number} of {self.where} is damaged: no '{key}' in it.")
        return example


def _open(settings: TfdsSettings, found: Prepared) -> _Opened:
    """Opens a set and chooses the features to read."""
    check_format(found)
    check_shards(found, FORMAT)
    builder = _builder(found)
    wanted = settings.image_key, settings.label_key
    keys = choose_features(builder.info.features, *wanted, found.title)
    return _Opened(builder, found, keys, settings.workers or usable_cores() + 2)


def _builder(found: Prepared) -> _Builder:
    """TFDS's reader of a folder."""
    import tensorflow_datasets

    try:
        return tensorflow_datasets.builder_from_directory(found.folder, file_format=FORMAT)
    # Old or damaged metadata raise anything from KeyError to a JSON or protobuf error.
    except Exception as error:
        raise DataError(f"{found.folder} cannot be opened by TFDS: {error}.") from error


def _source(records: _Records, numbers: np.ndarray, spec: ImageSpec, keys: Keys) -> Source:
    def read(place: int) -> np.ndarray:
        number = int(numbers[place])
        try:
            return decode(records.image(number), spec)
        except ValueError as error:
            raise DataError(f"Image {number} of {records.where} is broken: {error}.") from error

    height, width = keys.shape[:2]
    shape: Shape | None = None
    if spec.size:
        shape = (spec.size, spec.size, spec.channels)
    elif height and width:
        shape = (height, width, spec.channels)
    return Source(
        read, len(numbers), lambda i: f"Image {numbers[i]} of {records.where}", shape, records.where
    )


def _own_split(found: Prepared, split: str) -> _Own:
    """The set's own split that `split` is taken from."""
    sizes = found.splits
    called = {name.lower(): name for name in reversed(sizes)}
    own = {s: [called[w] for w in SPLIT_WORDS[s] if w in called] for s in SPLIT_WORDS}
    tests = own[TEST] or own[VALIDATION]
    if own[TRAIN] and tests:
        name = own[TRAIN][0] if split == TRAIN else tests[0]
        return _Own(name, sizes[name], False)
    if not own[TRAIN] and len(sizes) != 1:
        raise DataError(
            f"TFDS set {found.title} has no split 'train'; it has {', '.join(sizes) or 'none'}."
        )
    name = own[TRAIN][0] if own[TRAIN] else next(iter(sizes))
    return _Own(name, sizes[name], True)


def _choose_examples(prepared: _Opened, own: _Own, split: str, fraction: float) -> _Chosen:
    """The examples of a split, their labels and their digest, which are remembered for large sets.

    Raises:
      DataError: the split is left without images, or examples have no class.
    """
    found, keys = prepared.found, prepared.keys
    records = _Records(prepared.builder, found, own.name, keys)
    memo = Memo(f"{found.folder} {found.changed} {own} {split} {keys} {fraction}")
    labels, digest, sixteen_bits = _recall(memo, own.count)
    if not digest:
        labels, digests, deep = records.look_at_all(prepared.workers)
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(keys.classes):
        raise DataError(
            f"{records.where} has examples without a class ('{keys.label}' = {labels.min()}). Set "
            f"data.label_key='{NO_LABELS}' to use it without classes."
        )
    numbers, how = np.arange(own.count), _own_splits_in_words(found)
    if own.shared:
        for_test = held_out([f"{own.name}/{i}" for i in range(own.count)], labels, fraction)
        numbers = np.flatnonzero(for_test if split == TEST else ~for_test)
        how = f"of '{own.name}' {by_hash_in_words(for_test, fraction)}"
        if not len(numbers):
            raise empty_split(found.title, split, own.count, fraction)
    if not digest:
        digest = hashlib.sha256(digests[numbers].tobytes()).hexdigest()
        sixteen_bits = bool(deep[numbers].any())
        if own.count >= WORTH_REMEMBERING:
            facts = {"labels": labels.tolist(), "digest": digest, "sixteen_bits": sixteen_bits}
            memo.remember(facts)
    return _Chosen(records, numbers, labels[numbers], digest, sixteen_bits, how)


def _recall(memo: Memo, count: int) -> tuple[np.ndarray, str, bool]:
    """What is remembered of a split: labels [count], digest, and whether images store colours of 16
    bits.

    Else the digest is empty.
    """
    schema = Schema({"labels": list_of(WHOLE), "digest": TEXT, "sixteen_bits": FLAG})
    known = memo.recall(schema) or {}
    if len(known.get("labels", ())) != count or not known.get("digest"):
        known = {"labels": [0] * count, "digest": "", "sixteen_bits": False}
    labels = np.asarray(known["labels"], np.int32)
    return labels, str(known["digest"]), bool(known["sixteen_bits"])


def _own_splits_in_words(found: Prepared) -> str:
    train, test = (_own_split(found, split) for split in SPLITS)
    unused = [name for name in found.splits if name not in (train.name, test.name)]
    return (
        f"by the set's own splits: {train.count} training images of '{train.name}', {test.count} "
        f"test images of '{test.name}'{'; not used: ' if unused else ''}{', '.join(unused)}"
    )
