"""Image sets of TensorFlow Datasets that are prepared on this machine, read without TensorFlow.

Sets are read from array_record files. Splits of our own are lists of indices and never TFDS's slice
notation, which some formats take and ignore.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddistill.data.dataset import Dataset
from ddistill.data.decode import ImageSpec, decode
from ddistill.data.flip import wants_flip
from ddistill.data.images import Shape, Source, open_images, usable_cores
from ddistill.data.listing import TESTS, check_fraction, empty_split, is_test
from ddistill.data.memo import Memo
from ddistill.data.tfds_files import FORMAT, Prepared, check_format, check_shards, find
from ddistill.errors import ConfigError, DataError, nearest

NO_LABELS = "none"
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
      flip: mirror at random while training; None = yes, unless the name says digits or the like.
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
    flip: Any = None
    test_fraction: float = 0.1
    in_memory_limit_mb: float = 2048.0
    workers: int = 0


@dataclass(frozen=True)
class _Keys:
    image: str
    label: str
    shape: tuple[int | None, ...]
    classes: tuple[str, ...]


def load_tfds(settings: TfdsSettings, split: str) -> Dataset:
    """Opens one split of a prepared TFDS set, in the order of its files.

    Raises:
      ConfigError: a setting that cannot be, such as a feature that the set has not.
      DataError: the set is missing or in another format (the message has the command that
        prepares it), is damaged, or has no images for the split.
    """
    check_fraction(settings.test_fraction)
    found = find(settings.path, settings.data_dir)
    check_format(found)
    check_shards(found, FORMAT)
    builder = _builder(found)
    keys = _keys(settings, builder.info.features, found.title)
    spec = ImageSpec(settings.image_size, settings.channels or _stored_channels(keys))
    theirs, numbers = _split(found, split, settings.test_fraction)
    workers = settings.workers or usable_cores() + 2
    records = _Records(builder, found, theirs, keys)
    key = f"{found.folder} {found.changed} {theirs} {split} {keys.label} {settings.test_fraction}"
    labels = records.labels(numbers, workers, Memo(key))
    opened = open_images(
        _source(records, numbers, spec, keys),
        limit_mb=settings.in_memory_limit_mb,
        skip=False,
        workers=workers,
        check=False,
    )
    return Dataset(
        name=str(found.info["name"]),
        images=opened.images,
        labels=labels,
        num_classes=len(keys.classes),
        class_names=keys.classes,
        hflip=wants_flip(settings.flip, str(found.info["name"])),
        provenance=(
            f"TFDS {found.title}, {split} split ({len(numbers)} examples of '{theirs}'), {spec}, "
            f"image '{keys.image}', label '{keys.label or NO_LABELS}', "
            f"sha256 of shards {found.digest[:16]}"
        ),
    )


def count_tfds(settings: TfdsSettings, split: str) -> int:
    """Number of examples of a split.

    Raises:
      DataError: the set is missing or has no images for the split.
    """
    check_fraction(settings.test_fraction)
    found = find(settings.path, settings.data_dir)
    return len(_split(found, split, settings.test_fraction)[1])


def describe_tfds(settings: TfdsSettings) -> str:
    """One line: where the set is and how many examples its splits have."""
    found = find(settings.path, settings.data_dir)
    check_format(found)
    splits = ", ".join(f"{n} {name}" for name, n in found.splits.items())
    return f"TFDS {found.title} in {found.folder}: {splits} examples"


class _Records:
    """Encoded images and labels of one of the set's own splits, by index; safe between threads."""

    def __init__(self, builder: Any, found: Prepared, split: str, keys: _Keys):
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

    def labels(self, numbers: np.ndarray, workers: int, memo: Memo) -> np.ndarray:
        """int32 labels of the examples `numbers`; zeros where the set has none.

        Reading them means reading every record, so they are remembered for large sets.
        """
        key = self._keys.label
        if not key:
            return np.zeros(len(numbers), np.int32)

        def read(part: np.ndarray) -> list[int]:
            return [int(self._example(int(n))[key]) for n in part]

        known = memo.recall() or []
        if len(known) != len(numbers):
            parts = np.array_split(numbers, max(1, len(numbers) // 1024))
            with ThreadPoolExecutor(workers, "ddistill-labels") as pool:
                known = [x for part in pool.map(read, parts) for x in part]
            if len(known) >= WORTH_REMEMBERING:
                memo.remember(known)
        labels = np.asarray(known, np.int32)
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(self._keys.classes):
            raise DataError(
                f"{self.where} has examples without a class ('{key}' = {labels.min()}). Set "
                f"data.label_key='{NO_LABELS}' to use it without classes."
            )
        return labels

    def _example(self, number: int) -> Any:
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


def _builder(found: Prepared) -> Any:
    """TFDS's reader of a folder."""
    import tensorflow_datasets

    try:
        return tensorflow_datasets.builder_from_directory(found.folder, file_format=FORMAT)
    # Old or damaged metadata raise anything from KeyError to a JSON or protobuf error.
    except Exception as error:
        raise DataError(f"{found.folder} cannot be opened by TFDS: {error}.") from error


def _source(records: _Records, numbers: np.ndarray, spec: ImageSpec, keys: _Keys) -> Source:
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


def _split(found: Prepared, split: str, test_fraction: float) -> tuple[str, np.ndarray]:
    """Name of the set's own split, and the examples of it that make up ours."""
    sizes = found.splits
    tests = [name for name in TESTS if name in sizes]
    if "train" in sizes and tests:
        theirs = "train" if split == "train" else tests[0]
        return theirs, np.arange(sizes[theirs])
    if "train" not in sizes and len(sizes) != 1:
        raise DataError(
            f"TFDS set {found.title} has no split 'train'; it has {', '.join(sizes) or 'none'}."
        )
    theirs = "train" if "train" in sizes else next(iter(sizes))
    for_test = np.asarray([is_test(f"{theirs}/{i}", test_fraction) for i in range(sizes[theirs])])
    numbers = np.flatnonzero(for_test if split == "test" else ~for_test)
    if not len(numbers):
        raise empty_split(found.title, split, sizes[theirs], test_fraction)
    return theirs, numbers


def _keys(settings: TfdsSettings, features: Any, title: str) -> _Keys:
    """The features to read as image and label."""
    from tensorflow_datasets import features as kinds

    by_name = dict(features) if isinstance(features, kinds.FeaturesDict) else {}
    images = sorted(k for k, f in by_name.items() if type(f) is kinds.Image)
    labels = sorted(k for k, f in by_name.items() if isinstance(f, kinds.ClassLabel))
    image = _choose("image_key", settings.image_key, "image", images, title)
    if not image:
        raise DataError(
            f"TFDS set {title} has no single image feature; its images: "
            f"{', '.join(images) or 'none'}. Set data.image_key to one of them."
        )
    label = ""
    if settings.label_key != NO_LABELS:
        label = _choose("label_key", settings.label_key, "label", labels, title)
    if np.dtype(by_name[image].np_dtype) == np.float32:
        raise DataError(f"Image '{image}' of TFDS set {title} holds floats; 8 or 16 bits needed.")
    classes = tuple(by_name[label].names) if label else ("all",)
    return _Keys(image, label, tuple(by_name[image].shape), classes)


def _choose(key: str, given: str, usual: str, there: list[str], title: str) -> str:
    if given and given not in there:
        raise ConfigError(
            f"data.{key}='{given}' is no such feature of {title}.{nearest(given, there)} "
            f"Allowed: {', '.join(there) or 'none'}."
        )
    if given or usual in there:
        return given or usual
    return there[0] if len(there) == 1 else ""


def _stored_channels(keys: _Keys) -> int:
    return 1 if keys.shape[-1] == 1 else 3
