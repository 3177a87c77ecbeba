"""TFDS sets as array_record, made and read by TFDS's own code without TensorFlow."""

import importlib.util
import io
import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddistill import data
from ddistill.data import prepare as prepare_module
from ddistill.data import tfds as tfds_module
from ddistill.errors import ConfigError, DataError

TRAIN, TEST = 14, 5


def prepared(*words: str) -> str:
    """Runs ddistill.data.prepare; returns "" where it succeeds, and what it ends with otherwise."""
    try:
        prepare_module.main(words)
    except SystemExit as end:
        return str(end.code)
    return ""


def pixels(number: int, channels: int = 3, side: int = 8) -> np.ndarray:
    out = np.random.default_rng(number).integers(0, 256, (side, side, channels)).astype(np.uint8)
    out[0, 0] = number
    return out


def encoded(number: int, channels: int = 3, side: int = 8) -> io.BytesIO:
    buffer = io.BytesIO()
    image = pixels(number, channels, side)
    Image.fromarray(image if channels > 1 else image[..., 0]).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


class Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images are handed over encoded: TFDS needs TensorFlow only to encode arrays."""

    VERSION = tfds.core.Version("1.2.0")
    FEATURES = None
    SPLITS = {"train": range(TRAIN), "test": range(100, 100 + TEST)}  # noqa: RUF012

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.FEATURES)
        )

    def _split_generators(self, _):
        return {name: self._generate_examples(numbers) for name, numbers in self.SPLITS.items()}

    def _generate_examples(self, numbers):
        for number in numbers:
            yield number, self.example(number)

    def example(self, number):
        return {"image": encoded(number), "label": number % 3, "id": f"number {number}"}


def image_feature(channels=3, side=8):
    return tfds.features.Image(shape=(side, side, channels))


def make(folder, name="tiny", features=None, **changes):
    """Writes a set called `name` and returns the folder of its version."""
    features = features or {
        "image": image_feature(),
        "label": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
        "id": tfds.features.Text(),
    }
    title = "".join(word.capitalize() for word in name.split("_"))
    cls = type(title, (Base,), {"FEATURES": features, **changes}, skip_registration=True)
    builder = cls(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder / name / "1.2.0"


def to_tfrecord(version):
    """Turns an array_record set into a tfrecord one, framing the same records by hand."""
    from array_record.python import array_record_module

    for shard in version.glob("*.array_record-*"):
        reader = array_record_module.ArrayRecordReader(str(shard))
        with open(str(shard).replace("array_record", "tfrecord"), "wb") as out:
            for record in reader.read_all():
                out.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
        reader.close()
        shard.unlink()
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return version


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    make(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))


def load(folder, split="train", path="tiny", **changes):
    return data.load({"name": "tfds", "path": path, "data_dir": str(folder), **changes}, split)


def numbers(dataset):
    """Which images of `pixels` a set holds, in its order; every pixel is checked."""
    images = dataset.take(range(len(dataset)))
    found = images[:, 0, 0, 0].tolist()
    np.testing.assert_array_equal(images, [pixels(n, dataset.image_shape[-1]) for n in found])
    return found


@pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])
def test_both_splits_are_read_whole_with_their_labels(root, limit):
    for split, expected in (("train", range(TRAIN)), ("test", range(100, 100 + TEST))):
        dataset = load(root, split, in_memory_limit_mb=limit)
        found = numbers(dataset)
        assert sorted(found) == list(expected)
        assert dataset.labels.tolist() == [n % 3 for n in found]
        assert dataset.labels.dtype == np.int32
        assert isinstance(dataset.images, np.ndarray) == (limit > 0)
    assert dataset.class_names == ("ant", "bee", "cow")
    assert (dataset.num_classes, dataset.image_shape, dataset.name) == (3, (8, 8, 3), "tiny")


def test_reading_needs_no_tensorflow(root):
    code = (
        "import sys; from ddistill import data\n"
        f"d = data.load({{'name': 'tfds', 'path': 'tiny', 'data_dir': {str(root)!r}}}, 'train')\n"
        "print(len(d), int(d.images[:, 0, 0, 0].sum()), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(TRAIN), str(sum(range(TRAIN))), "False"], done.stderr


def test_a_set_is_found_by_name_version_folder_and_environment(root, monkeypatch):
    version = root / "tiny" / "1.2.0"
    first = load(root).provenance
    assert "tiny/1.2.0" in first
    assert load(root, path="tiny:1.2.0").provenance == first
    assert load("", path=str(version)).provenance == first
    assert load("", path=str(version.parent)).provenance == first
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert load("").provenance == first


def test_the_newest_version_is_taken(root, tmp_path):
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    newer = shutil.copytree(tmp_path / "tiny" / "1.2.0", tmp_path / "tiny" / "1.10.0")
    info = newer / "dataset_info.json"
    info.write_text(info.read_text().replace("1.2.0", "1.10.0"))
    (tmp_path / "tiny" / "incomplete.ABC_9.0.0").mkdir()
    shutil.copy(info, tmp_path / "tiny" / "incomplete.ABC_9.0.0")
    assert "tiny/1.10.0" in load(tmp_path).provenance
    assert "tiny/1.2.0" in load(tmp_path, path="tiny:1.2.0").provenance


def test_several_configs_have_to_be_chosen_from(root, tmp_path):
    for config in ("large", "small"):
        shutil.copytree(root / "tiny" / "1.2.0", tmp_path / "tiny" / config / "1.2.0")
    with pytest.raises(DataError, match=r"several configs.* tiny/large, tiny/small"):
        load(tmp_path)
    assert len(load(tmp_path, path="tiny/small")) == TRAIN


def test_a_set_without_test_split_is_split_by_index(tmp_path):
    make(tmp_path, SPLITS={"train": range(60)})
    train, test = (numbers(load(tmp_path, s, test_fraction=0.3)) for s in ("train", "test"))
    assert sorted(train + test) == list(range(60))
    assert 8 <= len(test) <= 30
    assert numbers(load(tmp_path, "test", test_fraction=0.3)) == test
    settings = {"name": "tfds", "path": "tiny", "data_dir": str(tmp_path), "test_fraction": 0.3}
    assert [data.count(settings, s) for s in ("train", "test")] == [len(train), len(test)]
    with pytest.raises(DataError, match="leaves no test images of the 60"):
        load(tmp_path, "test", test_fraction=0.0)


def test_a_split_by_index_leaves_every_class_a_training_image(tmp_path):
    sparse = {"image": image_feature(), "label": tfds.features.ClassLabel(num_classes=9)}
    example = lambda self, n: {"image": encoded(n), "label": n % 9}  # noqa: E731
    make(tmp_path, features=sparse, example=example, SPLITS={"train": range(10)})
    train, test = (load(tmp_path, s, test_fraction=0.8) for s in ("train", "test"))
    assert set(train.labels.tolist()) == set(range(9))
    assert sorted(numbers(train) + numbers(test)) == list(range(10))
    settings = {"name": "tfds", "path": "tiny", "data_dir": str(tmp_path), "test_fraction": 0.8}
    assert [data.count(settings, s) for s in ("train", "test")] == [len(train), len(test)]
    assert f"{len(train)} training images, {len(test)} test images" in train.reading.split


def test_splits_are_known_by_the_names_of_imagefolder(tmp_path):
    parts = {"Training": range(4), "dev": range(20, 22), "eval": range(10, 13), "more": range(1)}
    make(tmp_path, SPLITS=parts)
    train, test = (load(tmp_path, s) for s in ("train", "test"))
    assert sorted(numbers(train)) == [0, 1, 2, 3]
    assert sorted(numbers(test)) == [10, 11, 12]
    assert "not used: dev, more" in train.reading.split


def changed(version):
    """Turns the labels of a set by one in its shards, of which nothing else changes."""
    from array_record.python import array_record_module

    for shard in version.glob("*.array_record-*"):
        reader = array_record_module.ArrayRecordReader(str(shard))
        records = reader.read_all()
        reader.close()
        writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
        for record in [*records[1:], records[0]]:
            writer.write(record)
        writer.close()


@pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])
def test_the_identity_is_the_content_and_not_what_the_metadata_say(
    root, tmp_path, limit, monkeypatch
):
    monkeypatch.setattr(tfds_module, "WORTH_REMEMBERING", 1)
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    first = load(root).identity
    for same in ({}, {"workers": 1}, {"test_fraction": 0.5}, {"image_key": "image"}):
        assert load(tmp_path, in_memory_limit_mb=limit, **same).identity == first
    for other in ({"flip": True}, {"channels": 1}, {"image_size": 4}, {"label_key": "none"}):
        assert load(tmp_path, in_memory_limit_mb=limit, **other).identity != first
    assert load(tmp_path, "test", in_memory_limit_mb=limit).identity != first
    changed(tmp_path / "tiny" / "1.2.0")
    after = load(tmp_path, in_memory_limit_mb=limit)
    assert numbers(after) != numbers(load(root))
    assert after.identity != first


def test_validation_stands_for_test(tmp_path):
    make(tmp_path, SPLITS={"train": range(4), "validation": range(10, 13)})
    assert sorted(numbers(load(tmp_path, "test"))) == [10, 11, 12]


def test_a_single_split_of_another_name_is_used_and_several_are_not(tmp_path):
    make(tmp_path, SPLITS={"full": range(30)})
    both = [numbers(load(tmp_path, s, test_fraction=0.5)) for s in ("train", "test")]
    assert sorted(both[0] + both[1]) == list(range(30))
    make(tmp_path, name="odd", SPLITS={"left": range(3), "right": range(3)})
    with pytest.raises(DataError, match="no split 'train'; it has left, right"):
        load(tmp_path, path="odd")


def test_grey_sets_stay_grey_unless_asked(tmp_path):
    features = {"image": image_feature(1), "label": tfds.features.ClassLabel(num_classes=3)}
    make(
        tmp_path,
        "tiny_mnist",
        features,
        example=lambda self, n: {"image": encoded(n, 1), "label": n % 3},
    )
    grey = load(tmp_path, path="tiny_mnist")
    assert sorted(numbers(grey)) == list(range(TRAIN))
    assert (grey.image_shape, grey.hflip) == ((8, 8, 1), False)
    colour = load(tmp_path, path="tiny_mnist", channels=3, image_size=4, flip=True)
    assert (colour.image_shape, colour.hflip) == ((4, 4, 3), True)


def test_sets_are_mirrored_as_their_recipes_say(root, tmp_path):
    assert (load(root).hflip, load(root, flip=True).hflip) == (False, True)
    make(tmp_path, name="cifar10", SPLITS={"train": range(4), "test": range(2)})
    known = load(tmp_path, path="cifar10")
    assert known.hflip
    assert "DDPM" in known.reading.flip
    assert not load(tmp_path, path="cifar10", flip=False).hflip


def test_images_of_unlike_sizes_need_a_size(tmp_path):
    features = {"picture": tfds.features.Image(shape=(None, None, 3))}
    make(tmp_path, features=features, example=lambda self, n: {"picture": encoded(n, 3, 8 + n % 2)})
    with pytest.raises(DataError, match=r"9x9x3|8x8x3.*Set data.image_size"):
        load(tmp_path)
    dataset = load(tmp_path, image_size=8)
    assert dataset.images.shape == (TRAIN, 8, 8, 3)
    assert (dataset.num_classes, set(dataset.labels.tolist())) == (1, {0})


def test_features_are_chosen_by_key(tmp_path):
    features = {
        "left": image_feature(),
        "right": image_feature(),
        "fine": tfds.features.ClassLabel(num_classes=20),
        "coarse": tfds.features.ClassLabel(num_classes=2),
    }

    def example(self, n):
        return {"left": encoded(n), "right": encoded(n + 50), "fine": n % 20, "coarse": n % 2}

    make(tmp_path, features=features, example=example)
    with pytest.raises(DataError, match=r"no single image.*left, right.*data\.image_key"):
        load(tmp_path)
    assert sorted(numbers(load(tmp_path, image_key="right"))) == list(range(50, 50 + TRAIN))
    coarse = load(tmp_path, image_key="left", label_key="coarse")
    assert coarse.num_classes == 2
    assert coarse.labels.tolist() == [n % 2 for n in numbers(coarse)]
    assert load(tmp_path, image_key="left").num_classes == 1
    with pytest.raises(ConfigError, match=r"label_key='corse'.*Did you mean 'coarse'"):
        load(tmp_path, image_key="left", label_key="corse")


def test_unlabelled_examples_are_refused_unless_classes_are_not_wanted(tmp_path):
    make(tmp_path, example=lambda self, n: {"image": encoded(n), "label": -1, "id": ""})
    with pytest.raises(DataError, match=r"without a class.*data\.label_key='none'"):
        load(tmp_path)
    assert load(tmp_path, label_key="none").num_classes == 1


@pytest.mark.parametrize("kind, version", [("8-bit", 2), ("16-bit", 3), ("one of 16 bits", 3)])
def test_only_sets_with_images_of_sixteen_bits_are_others_than_before(
    tmp_path, monkeypatch, kind, version
):
    """Images of 16 bits decode otherwise than they did; runs on all other sets can go on."""

    def example(self, n):
        wide = kind == "16-bit" or (kind == "one of 16 bits" and n == 5)
        return {"image": sixteen_bits(n) if wide else encoded(n), "label": 0, "id": ""}

    asked = []
    original = tfds_module.identify
    monkeypatch.setattr(
        tfds_module, "identify", lambda text, *rest: (asked.append(text), original(text, *rest))[1]
    )
    monkeypatch.setattr(tfds_module, "WORTH_REMEMBERING", TRAIN)
    make(tmp_path, example=example)
    load(tmp_path)
    load(tmp_path)  # what is remembered says the same
    assert [text.rsplit(", ", 1)[1] for text in asked] == [f"decoding {version}"] * 2
    load(tmp_path, "test")
    assert asked[-1].endswith("decoding 3" if kind == "16-bit" else "decoding 2")


def sixteen_bits(number: int) -> io.BytesIO:
    """A grey PNG with alpha of 16 bits."""
    size, kind = struct.pack(">II", 8, 8), bytes([16, 4, 0, 0, 0])
    rows = b"".join(b"\0" + struct.pack(">H", number) * 16 for _ in range(8))
    blocks = ((b"IHDR", size + kind), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x))
            for name, x in blocks
        )
    )


def test_labels_of_large_sets_are_read_once(root, monkeypatch):
    monkeypatch.setattr(tfds_module, "WORTH_REMEMBERING", TRAIN)
    first = load(root, in_memory_limit_mb=0)
    reads = []
    original = tfds_module._Records._example
    monkeypatch.setattr(
        tfds_module._Records, "_example", lambda s, n: (reads.append(n), original(s, n))[1]
    )
    again = load(root, in_memory_limit_mb=0)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert reads == []
    again.take([3])
    assert reads == [3]


# What is said when a set cannot be read.


def test_a_missing_set_gives_the_command_and_the_nearest_name(root):
    with pytest.raises(DataError) as error:
        load(root, path="tinny")
    text = str(error.value)
    assert f"'tinny' is not prepared in {root}" in text
    assert "Did you mean 'tiny'?" in text
    assert "pip install -e '.[prepare]'" in text
    assert text.endswith(f"python -m ddistill.data.prepare tinny --data_dir={root}")


def test_another_version_than_those_there_is_missing(root):
    with pytest.raises(DataError, match="'tiny:9.9.9' is not prepared"):
        load(root, path="tiny:9.9.9")


def test_the_command_for_a_tfrecord_set_makes_it_readable(root, tmp_path, capsys):
    """The command is taken from the message and run, so it cannot go stale."""
    shutil.copytree(root / "tiny", tmp_path / "my sets" / "tiny")
    version = to_tfrecord(tmp_path / "my sets" / "tiny" / "1.2.0")
    before = sorted(p.name for p in version.iterdir())
    with pytest.raises(DataError, match="is stored as tfrecord, and only array_record") as error:
        load(tmp_path / "my sets")
    assert "stored as tfrecord" in data.describe(
        {"name": "tfds", "path": "tiny", "data_dir": str(tmp_path / "my sets")}
    )
    command = re.search(r"python -m ddistill\.data\.prepare (.*)", str(error.value))
    assert prepared(*shlex.split(command[1])) == ""
    assert "14 train, 5 test examples" in capsys.readouterr().out

    for split in ("train", "test"):
        ours, theirs = load(tmp_path / "my sets", split), load(root, split)
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert sorted(p.name for p in version.iterdir()) == sorted([*before, "array_record"])
    assert json.loads((version / "dataset_info.json").read_text())["fileFormat"] == "tfrecord"
    assert prepared("tiny", f"--data_dir={tmp_path / 'my sets'}") == ""


@pytest.mark.parametrize("kind", ["cut", "short", "gone", "garbage"])
def test_a_damaged_tfrecord_shard_is_named_and_leaves_nothing_behind(root, tmp_path, kind):
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    version = to_tfrecord(tmp_path / "tiny" / "1.2.0")
    shard = version / "tiny-train.tfrecord-00000-of-00001"
    content = shard.read_bytes()
    if kind == "cut":
        shard.write_bytes(content[:-7])
    elif kind == "short":
        length = struct.unpack("<Q", content[:8])[0]
        shard.write_bytes(content[16 + length :])
    elif kind == "garbage":
        shard.write_bytes(b"\xff" * 100)
    else:
        shard.unlink()
    message = prepared("tiny", f"--data_dir={tmp_path}")
    assert shard.name in message
    assert message.startswith("error: ")
    assert not (version / "array_record").exists()
    if kind != "gone":
        shard.write_bytes(content)
        assert prepared("tiny", f"--data_dir={tmp_path}") == ""
        assert len(load(tmp_path)) == TRAIN


def test_formats_that_are_not_converted_say_so(root, tmp_path):
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    info = tmp_path / "tiny" / "1.2.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "parquet"))
    with pytest.raises(DataError, match="stored as parquet"):
        load(tmp_path)
    assert "another folder: --data_dir=FOLDER" in prepared("tiny", f"--data_dir={tmp_path}")


def test_a_missing_shard_is_named_with_the_command(root, tmp_path):
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "1.2.0" / "tiny-train.array_record-00000-of-00001").unlink()
    expected = rf"tiny-train\S+ is missing.*ddistill.data.prepare tiny --data_dir={tmp_path}$"
    with pytest.raises(DataError, match=expected):
        load(tmp_path)


def test_damaged_shards_and_metadata_are_data_errors(root, tmp_path):
    shutil.copytree(root / "tiny", tmp_path / "tiny")
    version = tmp_path / "tiny" / "1.2.0"
    shard = version / "tiny-train.array_record-00000-of-00001"
    content = shard.read_bytes()
    for broken in (content[:300] + bytes(400) + content[700:], content[: len(content) // 2], b""):
        shard.write_bytes(broken)
        with pytest.raises(DataError, match=r"Example \d+ of .*tiny.*'train' is damaged"):
            load(tmp_path)
    (version / "features.json").write_text("{")
    with pytest.raises(DataError, match="cannot be opened by TFDS"):
        load(tmp_path)
    (version / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset_info\.json cannot be read"):
        load(tmp_path)


def test_an_image_that_is_none_is_named_by_number(tmp_path):
    def example(self, n):
        return {"image": io.BytesIO(b"no image") if n == 5 else encoded(n), "label": 0, "id": ""}

    make(tmp_path, example=example)
    with pytest.raises(DataError, match=r"Image \d+ of .*tiny.*'train' is broken"):
        load(tmp_path)


# Preparing.


def test_preparing_without_the_extra_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = prepared("mnist", f"--data_dir={tmp_path}")
    assert message.startswith("error: Preparing 'mnist' needs tensorflow")
    assert "pip install -e '.[prepare]'" in message
    assert not any(tmp_path.iterdir())


def test_preparing_runs_tfds_once_the_extra_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_module, "EXTRA", ())
    cls = type("Tiny", (Base,), {"FEATURES": {"image": image_feature()}}, skip_registration=True)
    monkeypatch.setattr(cls, "example", lambda self, n: {"image": encoded(n)})
    monkeypatch.setattr(tfds, "builder", lambda name, **options: cls(**options))
    assert prepared("tiny", f"--data_dir={tmp_path}") == ""
    assert f"data.path='tiny' and data.data_dir='{tmp_path}'" in capsys.readouterr().out
    assert sorted(numbers(load(tmp_path))) == list(range(TRAIN))


def test_a_name_that_tfds_does_not_know_and_a_failure_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "EXTRA", ())
    assert "TFDS does not open 'no_such_set_at_all'" in prepared(
        "no_such_set_at_all", f"--data_dir={tmp_path}"
    )

    class Offline:
        def download_and_prepare(self):
            raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(tfds, "builder", lambda name, **options: Offline())
    message = prepared("tiny", f"--data_dir={tmp_path}")
    assert "ConnectionError: no route to host." in message
    assert "the same command goes on" in message


def test_a_folder_that_is_not_there_is_not_taken_for_a_name(tmp_path):
    assert "away' is not prepared" in prepared(str(tmp_path / "away"))


def test_describe_says_what_is_prepared(root):
    text = data.describe({"name": "tfds", "path": "tiny", "data_dir": str(root)})
    assert "tiny/1.2.0" in text
    assert "14 train, 5 test" in text
