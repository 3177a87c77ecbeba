"""Sets of parquet files: splits, columns and classes, and what is said of broken ones."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from pictures import picture, save
from PIL import Image
from pyarrow import parquet as pq

from ddistill import data
from ddistill.data.summary import summary
from ddistill.errors import ConfigError, DataError

NAMES = ["zebra", "ant", "cat"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(seed: int, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, 8)).save(buffer, kind, **options)
    return buffer.getvalue()


def write(path, images, group=4, names=NAMES, feature="Image", **columns):
    """A file as `datasets` writes it: {bytes, path}, and the features in the schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": x, "path": f"{i}.png"} for i, x in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), **columns})
    features: dict = {"image": {"_type": feature}}
    if names and "label" in columns:
        features["label"] = {"names": names, "_type": "ClassLabel"}
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(meta), path, row_group_size=group)
    return path


def shards(root, split="train", per=5, count=2, **options):
    for k in range(count):
        seeds = range(k * per, (k + 1) * per)
        labels = [s % 3 for s in seeds]
        name = f"{split}-{k:05d}-of-{count:05d}.parquet"
        write(root / "data" / name, [encoded(s) for s in seeds], label=labels, **options)
    return root


def load(path, split="train", **changes):
    return data.load({"name": "parquet", "path": str(path), "test_fraction": 0.0, **changes}, split)


def refused(path, *parts, error=DataError, split="train", **changes):
    with pytest.raises(error) as caught:
        load(path, split, **changes)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_as_the_hub_keeps_it(tmp_path):
    """Rows in the order of the shards, classes in the order of the schema."""
    root = shards(tmp_path / "pets")
    shards(root, "test", per=2, count=1)
    train, test = load(root), load(root, "test")
    assert train.name == "pets"
    assert train.class_names == ("zebra", "ant", "cat")
    assert train.labels.tolist() == [i % 3 for i in range(10)]
    np.testing.assert_array_equal(train.images, [picture(i, 8) for i in range(10)])
    assert test.labels.tolist() == [0, 1]
    assert data.count({"name": "parquet", "path": str(root)}, "test") == 2
    assert "10 train, 2 test" in data.describe({"name": "parquet", "path": str(root)}).replace(
        "2 test, 10 train", "10 train, 2 test"
    )
    text = "\n".join(summary(train))
    assert "by the set's own splits: 10 training images of 'train', 2 test images of 'test'" in text


def test_the_same_images_are_the_same_set_however_they_are_kept(tmp_path):
    """As a folder, in other shards and row groups, and decoded when used."""
    root = shards(tmp_path / "set")
    first = load(root)
    other = shards(tmp_path / "other", per=10, count=1, group=3)
    assert load(other).identity == first.identity
    lazy = load(root, in_memory_limit_mb=0.0)
    assert not isinstance(lazy.images, np.ndarray)
    assert lazy.identity == first.identity
    order = np.array([9, 0, 3, 9])
    np.testing.assert_array_equal(lazy.take(order), first.images[order])
    for i in range(10):
        save(tmp_path / "folder" / NAMES[i % 3] / f"{i}.png", picture(i, 8))
    folder = data.load({"name": "folder", "path": str(tmp_path / "folder")}, "train")
    assert folder.identity["image_shape"] == first.identity["image_shape"]
    flipped = [encoded(i) for i in range(9)] + [encoded(42)]
    write(tmp_path / "changed" / "train.parquet", flipped, label=[i % 3 for i in range(10)])
    changed = load(tmp_path / "changed").identity
    assert changed["labels"] == first.identity["labels"]
    assert changed["pixels"] != first.identity["pixels"]


def test_rows_are_held_out_by_their_number(tmp_path):
    one = shards(tmp_path / "one", per=30, count=1)
    two = shards(tmp_path / "two", per=15, count=2)
    found = [load(p, s, test_fraction=0.3).identity for p in (one, two) for s in ("train", "test")]
    assert found[:2] == found[2:]
    assert found[0]["images"] + found[1]["images"] == 30
    assert 0 < found[1]["images"] < 20


def test_folders_and_words_that_are_splits(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path / "a" / "default" / split / "0000.parquet", [encoded(len(split))])
    write(tmp_path / "b" / "my_train.parquet", [encoded(5)])
    write(tmp_path / "b" / "my_val.parquet", [encoded(10)])
    for root, held_out in (("a", 4), ("b", 10)):
        np.testing.assert_array_equal(load(tmp_path / root).images[0], picture(5, 8))
        test = load(tmp_path / root, "test")
        np.testing.assert_array_equal(test.images[0], picture(held_out, 8))
        assert test.class_names == ("all",)
    assert "not used: validation" in load(tmp_path / "a").reading.split


def test_one_file_is_a_set(tmp_path):
    path = write(tmp_path / "mine.parquet", [encoded(0), encoded(1)])
    assert len(load(path)) == 2
    write(tmp_path / "train" / "a.parquet", [encoded(0)])
    refused(tmp_path, "beside the folders 'train'")


def test_shards_that_are_missing_are_named(tmp_path):
    root = shards(tmp_path / "set", count=3)
    (root / "data" / "train-00001-of-00003.parquet").unlink()
    refused(root, "2 of the 3 files like train-00000-of-00003.parquet", "missing numbers: 1")
    write(root / "data" / "train-00000-of-00002.parquet", [encoded(0)], label=[0])
    refused(root, "more than one numbering")


def test_sets_that_are_ambiguous_are_refused(tmp_path):
    for name in ("cats", "dogs"):
        write(tmp_path / "a" / f"{name}.parquet", [encoded(0)])
        write(tmp_path / "b" / name / "0.parquet", [encoded(0)])
        write(tmp_path / "c" / f"test-{name}.parquet", [encoded(0)])
    refused(tmp_path / "a", "'cats', 'dogs'", "splits, or parts of one?")
    refused(tmp_path / "b", "the folders 'cats', 'dogs'", "Set data.path to one of them")
    refused(tmp_path / "c", "'test-cats', 'test-dogs'")
    write(tmp_path / "d" / "test.parquet", [encoded(0)])
    refused(tmp_path / "d", "no split 'train'")


# ------------------------------------------------------------------------------------- columns


def test_columns_of_other_names_and_kinds(tmp_path):
    """Bytes without a path, two columns of classes, captions, and no features in the schema."""
    table = pa.table(
        {
            "picture": pa.array([encoded(i) for i in range(3)], pa.large_binary()),
            "fine": ["10", "9", "9"],
            "caption": ["a", None, "c"],
            "size": [1.0, 2.0, 3.0],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    plain = load(tmp_path)
    assert (plain.num_classes, plain.texts.keys()) == (1, {"fine", "caption"})
    fine = load(tmp_path, label_column="fine", image_column="picture")
    assert fine.class_names == ("9", "10")  # by value
    assert fine.labels.tolist() == [1, 0, 0]
    assert fine.texts == {"caption": ("a", "", "c")}
    assert "texts     caption: kept by name" in "\n".join(summary(fine))
    refused(tmp_path, "'fnie' is no column", "Did you mean 'fine'?", error=ConfigError,
            label_column="fnie")  # fmt: skip
    refused(tmp_path, "data.image_column='caption'", error=ConfigError, image_column="caption")
    refused(tmp_path, "Row 0 of x.parquet", "is a float", label_column="size")


def test_two_columns_of_images_or_of_classes_have_to_be_named(tmp_path):
    fields = [{"_type": "ClassLabel", "names": ["a"]}] * 2
    features = dict(zip(("fine", "coarse"), fields))
    table = pa.table({"fine": [0], "coarse": [0], "x": [b"1"], "y": [b"2"]})
    meta = {b"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(meta), tmp_path / "x.parquet")
    refused(tmp_path, "image columns x, y", "data.image_column")
    refused(tmp_path, "columns of classes fine, coarse", "'none'", image_column="x")


def test_files_of_one_split_have_the_same_classes(tmp_path):
    shards(tmp_path)
    path = tmp_path / "data" / "train-00001-of-00002.parquet"
    write(path, [encoded(0)], names=["ant", "zebra", "cat"], label=[0])
    refused(tmp_path, "train-00001-of-00002.parquet has other columns or classes")


@pytest.mark.parametrize(
    ("names", "columns", "part"),
    [
        (["zebra", "cat", "ant"], {"label": [0]}, "'label' with zebra, cat, ant"),
        (None, {"label": [0]}, "'label' with no declared classes"),
        (None, {"caption": ["x"]}, "no column with no declared classes"),
    ],
)
def test_a_test_split_of_other_classes_is_refused(tmp_path, names, columns, part):
    """Its numbers would stand for other classes than those of the training split."""
    write(tmp_path / "train.parquet", [encoded(0)], label=[0])
    write(tmp_path / "test.parquet", [encoded(1)], names=names, **columns)
    assert load(tmp_path).num_classes == 3
    refused(tmp_path, "test split in " + part, "data.label_column='none'", split="test")
    assert load(tmp_path, split="test", label_column="none").num_classes == 1


@pytest.mark.parametrize("value", [-1, 3, None])
def test_rows_without_a_class_are_named(tmp_path, value):
    path = write(tmp_path / "x.parquet", [encoded(0), encoded(1)], label=pa.array([0, value]))
    refused(path, f"Row 1 of x.parquet has no class: its 'label' is {value}", "0 to 2", "'none'")
    assert load(path, label_column="none").num_classes == 1


def test_a_class_that_is_only_in_the_test_split_is_named(tmp_path):
    write(tmp_path / "train.parquet", [encoded(0)], label=["a"], names=None)
    write(tmp_path / "test.parquet", [encoded(0)], label=["b"], names=None)
    assert load(tmp_path).class_names == ("a",)
    refused(tmp_path, "Row 0 of test.parquet is of the class 'b'", "'train'", split="test")


# --------------------------------------------------------------------------------- broken content


def test_rows_whose_image_cannot_be_read_are_named_or_skipped(tmp_path):
    images = [encoded(0), None, b"no image", encoded(3)[:40], encoded(4)]
    path = write(tmp_path / "x.parquet", images, group=2, label=[0, 1, 2, 0, 1])
    for at, why in ((1, "holds only the path '0.png'"), (2, "not an image in a known format")):
        refused(write(tmp_path / f"{at}" / "x.parquet", images[at : at + 1]), "Row 0 of", why)
    refused(path, "Row 1 of x.parquet has no image")
    refused(path, "No training image of the class 'cat'", on_bad_image="skip")
    rest = load(path, on_bad_image="skip", label_column="none")
    assert (len(rest), rest.skipped) == (2, 3)
    np.testing.assert_array_equal(rest.images, [picture(0, 8), picture(4, 8)])
    assert "3 train images that cannot be read" in rest.reading.left_out


def test_images_are_decoded_as_those_of_folders(tmp_path):
    """16 bits, transparency, a palette and EXIF: `ddistill.data.decode` does all of it."""
    wide = io.BytesIO()
    Image.fromarray(np.full((8, 8), 257 * 7, np.uint16)).save(wide, "PNG")
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(clear, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encoded(1, exif=exif)
    path = write(tmp_path / "x.parquet", [wide.getvalue(), clear.getvalue(), turned])
    found = load(path).images
    assert (found[0] == 7).all()
    assert (found[1] == 255).all()
    np.testing.assert_array_equal(found[2], picture(1, 8)[::-1, ::-1])


def test_files_that_are_no_parquet_are_named(tmp_path):
    path = write(tmp_path / "set" / "x.parquet", [encoded(i) for i in range(4)])
    whole = path.read_bytes()
    for content, why in (
        (whole[:50], "cannot be read as parquet"),
        (b"", "is empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (whole[:20] + bytes(200) + whole[220:], "cannot be read as parquet"),
    ):
        path.write_bytes(content)
        refused(path.parent, f"{path}", why)
    (tmp_path / "none").mkdir()
    save(tmp_path / "none" / "a.png", picture(0))
    refused(tmp_path / "none", "holds no parquet files", "data.name='folder' reads images")
    with pytest.raises(DataError, match="data.name='parquet' reads parquet files"):
        data.load({"name": "folder", "path": str(path.parent)}, "train")


def test_schema_notes_that_are_damaged_are_refused(tmp_path):
    table = pa.table({"image": [encoded(0)]})
    for note in (b"{", b"[]", b'{"info": 3}'):
        noted = table.replace_schema_metadata({b"huggingface": note})
        pq.write_table(noted, tmp_path / "x.parquet")
        refused(tmp_path, "notes for 'huggingface' cannot be read")
