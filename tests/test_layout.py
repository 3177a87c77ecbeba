"""Whether sub-folders are splits or classes, which classes there are, and what is left out."""

import unicodedata

import numpy as np
import pytest
from pictures import load, picture, save

from ddistill import data
from ddistill.data.listing import held_out, is_test
from ddistill.data.names import in_order, is_system, natural_key, split_in, split_of, text_of
from ddistill.errors import ConfigError, DataError
from ddistill.text import printable


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fill(root, *paths):
    """Files with pictures, each of its own; returns the folder."""
    for i, path in enumerate(paths):
        save(root / path, np.full((2, 2, 3), i, np.uint8))
    return root


def refused(root, *parts, split="train", **changes):
    with pytest.raises(DataError) as error:
        load(root, split, **changes)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


TESTS = ("Test", "testing", "EVAL", "evaluation", "Validation", "valid", "VAL", "dev")


@pytest.mark.parametrize(
    "train, test", [("TRAINING", "test"), ("train", "TEST"), *(("Train", name) for name in TESTS)]
)
def test_splits_are_known_by_every_name_of_imagefolder(tmp_path, train, test):
    root = fill(tmp_path / "set", f"{train}/a/0.png", f"{train}/b/0.png", f"{test}/b/1.png")
    assert load(root).class_names == ("a", "b")
    assert load(root).images[:, 0, 0, 0].tolist() == [0, 1]
    assert load(root, "test").images[:, 0, 0, 0].tolist() == [2]
    assert load(root, "test").labels.tolist() == [1]


def test_the_test_folder_goes_before_a_validation_folder_which_is_told(tmp_path):
    root = fill(tmp_path / "set", "Train/0.png", "val/0.png", "Testing/0.png")
    assert load(root, "test").images[0, 0, 0, 0] == 2
    assert "not used: val" in load(root).reading.split


@pytest.mark.parametrize("twice", [("train", "Training"), ("test", "eval"), ("val", "dev")])
def test_two_folders_for_one_split_are_refused(tmp_path, twice):
    root = fill(tmp_path / "set", "train/a/0.png", *(f"{name}/a/0.png" for name in twice))
    refused(root, *twice, "rename the one to", "data.splits='none'")


AMBIGUOUS = {
    "another folder": ("train/a/0.png", "test/a/0.png", "extra/0.png"),
    "vehicles": ("train/0.png", "car/0.png", "bus/0.png"),
    "classes beside a test folder": ("cat/0.png", "dog/0.png", "Test/0.png"),
    "names with a word": ("train2017/0.png", "val2017/0.png"),
    "names with a word among others": ("seg_train/a/0.png", "seg_test/a/0.png", "seg_pred/0.png"),
    "a folder around them": ("images/train/0.png", "images/test/0.png"),
    "splits in classes": ("cat/train/0.png", "cat/test/0.png", "dog/train/0.png"),
    "names of files": ("train_0.png", "train_1.png", "test_0.png"),
    "words in the names of files": ("COCO_train2014_1.png", "COCO_val2014_2.png"),
    "names of files in classes": ("cat/train-1.png", "cat/test-1.png"),
    "test inside of train": ("train/train/0.png", "train/test/0.png"),
}


@pytest.mark.parametrize("paths", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_two_readings_are_refused_with_both_and_none_takes_the_second(tmp_path, paths):
    root = fill(tmp_path / "set", *paths)
    refused(root, "split", "data.splits='none'")
    assert len(load(root, splits="none")) == len(paths)
    tops = {path.partition("/")[0] for path in paths if "/" in path}
    assert set(load(root, splits="none").class_names) == (tops or {"set"})


@pytest.mark.parametrize(
    "kind", ["another folder", "names with a word", "names with a word among others"]
)
def test_folders_takes_the_first_reading_and_tells_what_is_left_out(tmp_path, kind):
    root = fill(tmp_path / "set", *AMBIGUOUS[kind])
    train, test = (load(root, split, splits="folders") for split in ("train", "test"))
    assert (train.images[:, 0, 0, 0].tolist(), test.images[:, 0, 0, 0].tolist()) == ([0], [1])
    others = {"another folder": "extra", "names with a word among others": "seg_pred"}
    if kind in others:
        assert f"not used: {others[kind]}" in train.reading.split


def test_folders_without_training_images_are_refused(tmp_path):
    root = fill(tmp_path / "set", "cat/0.png", "test/0.png")
    refused(root, "none in 'train'", splits="folders")
    refused(fill(tmp_path / "flat", "0.png"), "none in 'train'", splits="folders")


def test_classes_called_train_and_test_inside_of_split_folders(tmp_path):
    paths = [f"{split}/{kind}/0.png" for split in ("train", "test") for kind in ("car", "train")]
    root = fill(tmp_path / "set", *paths, "train/test/0.png")
    assert load(root).class_names == ("car", "test", "train")


def test_other_words_with_the_letters_of_a_split_are_no_splits(tmp_path):
    root = fill(tmp_path / "set", "trains/contest.png", "tests/latest.png", "blood_test/detest.png")
    assert load(root).class_names == ("blood_test", "tests", "trains")
    assert [split_of(n) for n in ("Dev", "devs", "")] == ["validation", "", ""]
    assert [split_in(n) for n in ("my-Test_2", "2017val", "contest")] == ["test", "validation", ""]


@pytest.mark.parametrize(
    "train, test",
    [
        ("trainA", "testA"),
        ("trainingSet", "testSet"),
        ("TrainImages", "TestImages"),
        ("trainset", "testset"),
        ("traindata", "testdata"),
        ("DevTrain", "DevTest"),
    ],
)
def test_splits_in_compound_names_are_not_taken_for_classes(tmp_path, train, test):
    assert (split_in(train), split_in(test)) == ("train", "test")
    refused(fill(tmp_path / "set", f"{train}/0.png", f"{test}/0.png"), train, test)
    refused(fill(tmp_path / "flat", f"{train}_0.png", f"{test}_0.png"), "names of the files")
    inner = [f"{kind}/{split}/0.png" for kind in "ab" for split in (train, test)]
    refused(fill(tmp_path / "inner", *inner), "a split inside of 'a'")


def test_system_folders_of_any_number_or_case_are_no_classes():
    for name in ("found.001", "FOUND.007", "__macosx 2", "@GMT-2024.01.01-00.00.00", "DfsrPrivate"):
        assert is_system(name), name
    assert not any(is_system(name) for name in ("found", "lost", "macosx", "gmt"))


def test_numbers_in_the_digits_of_any_script_are_in_order():
    one, two, ten = "\u0661", "\u0662", "\u0661\u0660"
    assert in_order([ten, two, one]) == (one, two, ten)
    assert in_order(["class\uff11\uff10", "class\uff12"]) == ("class\uff12", "class\uff11\uff10")


def test_a_flat_test_folder_beside_classes_is_that_of_a_competition(tmp_path):
    root = fill(tmp_path / "set", "train/cat/0.png", "train/dog/0.png", "test/1.png", "test/2.png")
    assert load(root).class_names == ("cat", "dog")
    assert "cannot be used" in load(root).reading.split
    parts = ("holds images without class folders", "has the classes cat, dog", "not known")
    refused(root, *parts, f"data.path={root / 'train'}", split="test")
    described = data.describe({"name": "folder", "path": str(root)})
    assert "2 training and 0 test images" in described
    assert "without class folders" in described
    other = fill(tmp_path / "other", "train/0.png", "test/cat/0.png")
    refused(other, "has the class folders cat", "has none", split="test")


def test_the_setting_is_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.splits='folder'.*Did you mean 'folders'"):
        load(fill(tmp_path / "set", "0.png"), splits="folder")


# Splits by hash.


def test_every_class_keeps_a_training_image(tmp_path):
    root = fill(tmp_path / "set", *(f"c{i}/0.png" for i in range(30)))
    dataset = load(root, test_fraction=0.5)
    assert sorted(dataset.labels.tolist()) == list(range(30))
    with pytest.raises(DataError, match="leaves no test images of the 30"):
        load(root, "test", test_fraction=0.5)
    fill(root, *(f"c{i}/{j}.png" for i in range(30) for j in range(4)))
    assert len(load(root)) == 120
    splits = [load(root, split, test_fraction=0.9) for split in ("train", "test")]
    assert set(splits[0].labels.tolist()) == set(range(30))
    assert sum(map(len, splits)) == 120
    assert f"{len(splits[0])} training images, {len(splits[1])} test images" in (
        splits[0].reading.split
    )


def test_only_the_last_image_of_a_class_is_moved():
    names = [f"{i}.png" for i in range(200)]
    plain = [is_test(name, 0.5) for name in names]
    assert held_out(names, [0] * 200, 0.5).tolist() == plain
    tests = [name for name, test in zip(names, plain) if test]
    kept = np.flatnonzero(~held_out(tests, [7] * len(tests), 0.5))
    assert len(kept) == 1
    # The one that stays is the last one that a growing fraction would hold out.
    fractions = np.linspace(0, 0.5, 2001)
    since = [next(f for f in fractions if is_test(name, f)) for name in tests]
    assert since[kept[0]] == max(since)


def test_a_class_without_a_readable_training_image_is_refused(tmp_path):
    root = fill(tmp_path / "set", "a/0.png", "b/0.png")
    (root / "b" / "0.png").write_bytes(b"broken")
    for limit in (2048, 0):
        refused(
            root,
            "No training image of the class 'b'",
            on_bad_image="skip",
            image_size=2,
            in_memory_limit_mb=limit,
        )


# Names and order of classes.


@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(12)],
        [f"class_{i}" for i in (1, 2, 9, 10, 11, 100)],
        ["-10", "-2", "0", "0.5", "01", "1", "1.10", "1.5", "20"],
        ["01", "1", "3a", "20", "a", "b2", "b10", "c", "v1.5", "v1.10"],
        ["n01440764", "n01443537", "n02102040"],
    ],
)
def test_numbers_in_names_are_ordered_as_numbers(tmp_path, names):
    root = fill(tmp_path / "set", *(f"{name}/0.png" for name in reversed(names)))
    dataset = load(root)
    assert dataset.class_names == tuple(names)
    # Files stay in the order of their paths; the first pixel says which was written when.
    written = [len(names) - 1 - i for i in dataset.images[:, 0, 0, 0]]
    assert dataset.labels.tolist() == written


def test_natural_order_is_total_and_no_matter_of_the_start():
    names = ["1", "01", "001", "a1b2", "a1b10", "a01b2", "٣", "²", "9" * 400]
    ordered = sorted(names, key=natural_key)
    assert sorted(reversed(names), key=natural_key) == ordered
    assert ordered[:3] == ["001", "01", "1"]


def test_names_are_the_same_text_on_every_host(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    sets = [fill(tmp_path / form, f"{form}/0.png", "cafz/1.png") for form in (composed, apart)]
    first, second = (load(root, test_fraction=0.3) for root in sets)
    assert first.class_names == second.class_names == ("cafz", composed)
    assert first.identity == second.identity
    raw = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert printable(text_of(raw)) == r"caf\xe9"
    assert printable("a\nb\u2028 日本") == r"a\nb\u2028 日本"


# What is left out.

SYSTEM = (
    "@eaDir",
    "$RECYCLE.BIN",
    "lost+found",
    "System Volume Information",
    "#recycle",
    "@Recycle",
)
HIDDEN = (".thumbnails", ".Trash-1000", ".Trashes", ".AppleDouble", ".ipynb_checkpoints")


@pytest.mark.parametrize("name", [*SYSTEM, "__MACOSX", "#Recycle", *HIDDEN])
def test_folders_of_file_servers_hold_no_images_of_the_user(tmp_path, name):
    root = fill(tmp_path / "set", "a/0.png", f"a/{name}/0.png/S.jpg", f"{name}/o.png", "b/0.png")
    (root / "Thumbs.db").write_bytes(b"")
    dataset = load(root)
    assert (len(dataset), dataset.class_names) == (2, ("a", "b"))
    told = "; ".join(dataset.reading.left_out)
    assert ("2 hidden" if name.startswith(".") else f"2 x the folder {name}") in told
    assert "1 .db" in told


def test_what_is_not_read_is_told_by_ending(tmp_path):
    root = fill(tmp_path / "set", "a/0.jpg", "b/0.jpg")
    for i in range(30):
        (root / "a" / f"{i}.HEIC").write_bytes(b"x")
    (root / "c").mkdir()
    (root / "c" / "x.avif").write_bytes(b"x")
    (root / "README").write_text("")
    for i in range(20):
        (root / f"many.{i:03}").write_text("")
    dataset = load(root)
    told = "; ".join(dataset.reading.left_out)
    assert told.startswith("30 .heic; 1 .000")
    assert "15 of 15 other endings" in told
    assert "folders without images: c" in told
    assert "30 .heic" in data.describe({"name": "folder", "path": str(root), "test_fraction": 0.0})


def test_the_block_at_the_start_of_a_run_tells_what_was_read(tmp_path):
    root = fill(tmp_path / "set", *(f"{c}/{i}.png" for c in (2, 10, 1) for i in range(2)))
    (root / "1" / "a.heic").write_bytes(b"x")
    (root / "2" / "bad.png").write_bytes(b"x")
    settings = {"on_bad_image": "skip", "test_fraction": 0.0}
    text = "\n".join(data.summary(load(root, **settings)))
    for part in (
        "set: 6 training images of 2x2, RGB",
        "classes   3 in this order: 0: 1, 1: 2, 2: 10 (2 to 2 images each)",
        "split     by the hash of each name: 7 training images, 0 test images",
        "mirrored  no: the default; data.flip=True",
        "left out  1 train images that cannot be read; 1 .heic",
    ):
        assert part in text
    assert "mirrored  yes: data.flip=True" in "\n".join(
        data.summary(load(root, flip=True, **settings))
    )
    flat = fill(tmp_path / "flat", "0.png")
    assert "classes   one (flat)" in "\n".join(data.summary(load(flat)))


def test_the_block_of_many_classes_and_of_one_without_images():
    names = tuple(f"class\n{i}" for i in range(100))
    images, labels = np.zeros((99, 2, 2, 1), np.uint8), np.arange(99, dtype=np.int32)
    lines = data.summary(data.Dataset("made", images, labels, 100, names))
    assert len(lines) == 6
    assert "0: class\\n0, 1: class\\n1, " in lines[1]
    assert "..., 97: class\\n97, 98: class\\n98, 99: class\\n99 (0 to 1 images each)" in lines[1]
    assert "WITHOUT A TRAINING IMAGE: 99: class\\n99" in lines[-1]
    assert not any("\n" in line for line in lines)


def test_a_picture_of_each_kind_is_read_where_others_are_left_out(tmp_path):
    root = tmp_path / "set"
    save(root / "0.png", picture(1))
    (root / "1.webm").write_bytes(b"x")
    np.testing.assert_array_equal(load(root).images[0], picture(1))


# ----------------------------------------------------------------------- folders around the classes

AROUND = {
    "unpacked twice": ("train/train/a/0.png", "train/train/b/0.png"),
    "unpacked twice, under another word": ("train/Training/a/0.png", "train/Training/b/0.png"),
    "named images": ("train/images/a/0.png", "train/images/b/0.png"),
    "in another case": ("JPEG/a/0.png", "JPEG/b/0.png"),
    "without a split": ("set/a/0.png", "set/b/0.png"),
    "three deep": ("set/data/Set/a/0.png", "set/data/Set/b/0.png"),
    "digits": ("images/0/0.png", "images/1/0.png"),
    "with folders in the classes": ("images/a/deep/0.png", "images/b/0.png"),
}


@pytest.mark.parametrize("paths", AROUND.values(), ids=AROUND)
def test_a_usual_folder_around_the_classes_is_no_class(tmp_path, paths):
    root = fill(tmp_path / "set", *paths)
    (root / "readme.txt").write_text("x")
    found = load(root, test_fraction=0.0)
    assert found.class_names in (("a", "b"), ("0", "1"))
    assert found.labels.tolist() == [0, 1]
    wrapper = paths[0].rpartition("/a/")[0] or "images"
    assert (
        f"classes are the folders in {wrapper.removeprefix('train/')}, the one folder"
        in "\n".join(data.summary(found))
    )
    inner = load(root / wrapper, test_fraction=0.0)
    assert (found.identity, found.class_names) == (inner.identity, inner.class_names)
    # Every folder at the top is a class where that is said.
    assert load(root, splits="none", test_fraction=0.0).class_names == (paths[0].split("/")[0],)


def test_splits_each_with_a_folder_around_their_classes(tmp_path):
    paths = [
        f"{split}/{inner}/{c}/0.png"
        for split, inner in (("train", "train"), ("test", "images"))
        for c in "ab"
    ]
    root = fill(tmp_path / "set", *paths)
    for split in ("train", "test"):
        found = load(root, split)
        assert found.class_names == ("a", "b")
        assert found.labels.tolist() == [0, 1]
    assert "folders in train, the one folder there; classes are the folders in images" in (
        load(root).reading.split
    )
    # Not all of the classes are tested.
    root = fill(tmp_path / "other", *paths[:2], "test/images/b/0.png")
    assert load(root, "test").class_names == load(root).class_names == ("a", "b")
    assert load(root, "test").labels.tolist() == [1]


ONE_CLASS = {
    "images alone": ("cats/0.png", "cats/1.png"),
    "images and a folder": ("cats/0.png", "cats/more/1.png"),
    "one folder": ("cats/more/0.png",),
    "one folder in a usual one": ("images/cats/0.png",),
}


@pytest.mark.parametrize("paths", ONE_CLASS.values(), ids=ONE_CLASS)
def test_a_single_folder_with_images_is_a_class(tmp_path, paths):
    found = load(fill(tmp_path / "set", *paths))
    assert found.class_names == (paths[0].split("/")[0],)
    assert "sub-folders" not in found.reading.split


SPREAD = {
    "people": ("faces", "alice", "bob", "carl"),
    "another wrapper": ("x", "a", "b"),
    "shards": ("images", "00000", "01000"),
    "parts": ("images", "part1", "part2"),
    "three digits": ("images", "000", "001"),
    "other shards": ("images", "Shard_0", "Shard_1"),
}


@pytest.mark.parametrize("folders", SPREAD.values(), ids=SPREAD)
def test_folders_in_a_single_class_are_told_and_not_refused(tmp_path, folders):
    lone, *inner = folders
    root = fill(tmp_path / "set", *(f"{lone}/{name}/0.png" for name in inner))
    for splits in ("auto", "none"):
        found = load(root, splits=splits)
        assert (len(found), found.class_names) == (len(inner), (lone,))
    told = (
        f"the one class '{lone}' has {len(inner)} sub-folders ({', '.join(inner)}): if these are "
        f"the classes, set data.path={root / lone}"
    )
    assert [told in line for line in data.summary(load(root))].count(True) == 1
    assert load(root / lone).class_names == tuple(inner)


# Folders in train and in test, and the classes of both.
TOGETHER = {
    "folders in a class of the test images": ("cat dog", "cat/a cat/b", "cat dog"),
    "other folders for testing": ("face/v1 face/v2", "face/v3", "face"),
    "one class is tested": ("images/cat images/dog", "images/cat", "cat dog"),
    "shards": ("images/part1 images/part2", "images/part3 images/part4", "images"),
    "other people": ("images/al images/bo", "images/cy images/di", "images"),
    "one class is trained": ("images/cat", "images/cat images/dog", "images"),
    "without folders for testing": ("images/cat images/dog", "images", "images"),
}


@pytest.mark.parametrize("train, test, classes", TOGETHER.values(), ids=TOGETHER)
def test_train_and_test_are_looked_into_together(tmp_path, train, test, classes):
    parts = {"train": train.split(), "test": test.split()}
    root = fill(tmp_path / "set", *(f"{s}/{n}/0.png" for s in parts for n in parts[s]))
    for split, folders in parts.items():
        found = load(root, split)
        assert found.class_names == tuple(classes.split())
        labels = [next(i for i, c in enumerate(classes.split()) if c in f) for f in folders]
        assert found.labels.tolist() == labels
    told = "move them up into train and test, or set data.path=" in load(root).reading.split
    assert told == (len(classes.split()) == 1 < len(parts["train"]))


def test_a_folder_around_the_classes_of_one_split_alone(tmp_path):
    """Neither is gone through; the classes that differ are told."""
    paths = [f"{split}/{c}/0.png" for split in ("train/train", "test") for c in "ab"]
    root = fill(tmp_path / "set", *paths)
    assert load(root).class_names == ("train",)
    assert "move them up into train and test" in load(root).reading.split
    refused(root, "has the class 'a'", "Classes there: train", split="test")
