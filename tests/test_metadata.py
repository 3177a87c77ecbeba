"""Folders of images with metadata.jsonl or metadata.csv: classes, captions, splits, and errors."""

import json

import numpy as np
import pytest
from pictures import load, picture, save, truncate

from ddistill import data
from ddistill.data.summary import summary
from ddistill.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images(root, *names):
    for i, name in enumerate(names):
        save(root / name, picture(i))
    return root


def jsonl(root, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def table(root, text):
    (root / "metadata.csv").write_text(text)
    return root


def refused(path, *parts, error=DataError, split="train", **changes):
    with pytest.raises(error) as caught:
        load(path, split, **changes)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_and_captions_of_a_table(tmp_path):
    root = images(tmp_path / "pets", "a.png", "b.png", "c.png")
    rows = [
        {"file_name": "c.png", "label": "cat", "text": "a cat"},
        {"file_name": "a.png", "label": "dog", "text": "a dog"},
        {"file_name": "./b.png", "label": "cat"},
    ]
    found = load(jsonl(root, rows[0], "", *rows[1:]))
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [1, 0, 0]  # in the order of the files
    assert found.texts == {"text": ("a dog", "", "a cat")}
    np.testing.assert_array_equal(found.images, [picture(i) for i in range(3)])
    lines = "\n".join(summary(found))
    assert "classes: 'label' of the metadata" in lines
    assert "left out  nothing" in lines


def test_csv_is_the_same_set_as_jsonl_and_as_class_folders(tmp_path):
    rows = [("a.png", "10", 'with "quotes", and a comma'), ("b.png", "9", "two\nlines")]
    names = [name for name, *_ in rows]
    keys = ("file_name", "label", "text")
    one = jsonl(images(tmp_path / "one", *names), *(dict(zip(keys, row)) for row in rows))
    body = 'a.png,10,"with ""quotes"", and a comma"\nb.png,9,"two\nlines"\n'
    two = table(images(tmp_path / "two", *names), f"\ufefffile_name,label,text\n{body}")
    found = [load(one), load(two)]
    assert found[0].identity == found[1].identity
    assert found[0].texts == found[1].texts == {"text": (rows[0][2], rows[1][2])}
    assert found[0].class_names == ("9", "10")
    three = tmp_path / "three"
    for i, name in enumerate(("10", "9")):
        save(three / name / "x.png", picture(i))
    folders = load(three)
    assert folders.identity == found[0].identity


@pytest.mark.parametrize("where", ["in the root", "in each split"])
def test_tables_of_splits(tmp_path, where):
    root = images(tmp_path / "set", "train/0.png", "train/1.png", "test/2.png")
    if where == "in the root":
        rows = [{"file_name": f"{s}/{i}.png", "label": i % 2} for i, s in enumerate(["train"] * 2)]
        jsonl(root, *rows, {"file_name": "test/2.png", "label": 1})
    else:
        jsonl(root / "train", *({"file_name": f"{i}.png", "label": i} for i in range(2)))
        table(root / "test", "file_name,label\n2.png,1\n")
    train, test = load(root), load(root, "test")
    assert (train.class_names, train.labels.tolist()) == (("0", "1"), [0, 1])
    assert test.labels.tolist() == [1]
    np.testing.assert_array_equal(test.images[0], picture(2))
    assert "2 training images in train, 1 test images in test" in train.reading.split
    text = data.describe({"name": "folder", "path": str(root)})
    assert "2 training and 1 test images, 2 classes" in text
    assert "not read" not in text


def test_images_are_held_out_by_their_names(tmp_path):
    names = [f"{i}.png" for i in range(20)]
    rows = [{"file_name": name, "kind": i % 2 == 0} for i, name in enumerate(names)]
    root = jsonl(images(tmp_path / "set", *names), *rows)
    both = [load(root, s, test_fraction=0.3, label_column="kind") for s in ("train", "test")]
    assert both[0].class_names == both[1].class_names == ("False", "True")
    assert len(both[0]) + len(both[1]) == 20
    assert 0 < len(both[1]) < 15


def test_texts_stay_with_their_images_where_some_are_skipped(tmp_path):
    root = images(tmp_path / "set", "a.png", "b.png", "c.png")
    table(root, "file_name,text\na.png,A\nb.png,B\nc.png,C\n")
    truncate(root / "b.png")
    found = load(root, on_bad_image="skip")
    assert (found.texts, found.num_classes) == ({"text": ("A", "C")}, 1)


# ------------------------------------------------------------------------------------ ambiguity


def test_folders_and_a_table_may_both_give_the_classes(tmp_path):
    root = images(tmp_path / "set", "x/0.png", "y/1.png")
    table(root, "file_name,text,kind\nx/0.png,A,p\ny/1.png,B,p\n")
    refused(root, "no column 'label', and there are sub-folders", "(text, kind)", "'none'")
    assert load(root, label_column="kind").class_names == ("p",)
    assert load(root, label_column="none").num_classes == 1
    folders = load(root, metadata="none")
    assert (folders.class_names, folders.texts) == (("x", "y"), {})
    assert "1 .csv" in folders.reading.left_out
    table(root, "file_name,label\nx/0.png,p\ny/1.png,p\n")
    refused(root, "a column 'label' that differs from the folders")
    assert load(root, label_column="label").class_names == ("p",)
    table(root, "file_name,label\nx/0.png,p\ny/1.png,q\n")
    assert load(root).class_names == ("p", "q")


def test_a_table_beside_loose_images_and_a_split(tmp_path):
    root = images(tmp_path / "set", "0.png", "train/1.png")
    table(root, "file_name,label\n0.png,p\ntrain/1.png,q\n")
    refused(root, "beside the folder 'train'", "data.splits='none'")
    assert len(load(root, splits="none", label_column="label")) == 2


def test_two_tables_of_the_same_images(tmp_path):
    root = images(tmp_path / "set", "0.png")
    jsonl(root, {"file_name": "0.png"})
    table(root, "file_name\n0.png\n")
    refused(root, "metadata.csv both describe these images")
    (root / "metadata.csv").rename(root / "metadata.parquet")
    refused(root, "metadata.parquet is not read; write it as metadata.jsonl")


def test_a_column_without_a_table(tmp_path):
    root = images(tmp_path / "set", "0.png")
    refused(root, "data.label_column='kind' needs a table", error=ConfigError, label_column="kind")
    table(root, "file_name,kind\n0.png,a\n")
    refused(root, "Did you mean 'kind'?", error=ConfigError, label_column="kid")
    refused(root, "Did you mean 'auto'?", error=ConfigError, metadata="auot")


# --------------------------------------------------------------------------------- broken tables


@pytest.mark.parametrize(
    "row, parts",
    [
        ('{"file_name": "0.png"', ["line 2 is no JSON"]),
        ("[1]", ["line 2 holds a list"]),
        ({"name": "0.png"}, ["line 2 has no file_name", "data.metadata='none'"]),
        ({"file_name": 3}, ["line 2 has no file_name"]),
        ({"file_name": "/0.png"}, ["has to be a path below the folder"]),
        ({"file_name": "../set/0.png"}, ["has to be a path below the folder"]),
        ({"file_name": "a\\0.png"}, ["has to be a path below the folder"]),
        ({"file_name": "00.png"}, ["file_name='00.png' is no image of", "Did you mean '0.png'?"]),
        ({"file_name": "0.png", "label": "b"}, ["'0.png' is in ", "line 1 too"]),
        ({"file_name": "1.png"}, ["line 2 (1.png) has no class: its 'label' is empty"]),
        ({"file_name": "1.png", "label": ""}, ["line 2 (1.png) has no class"]),
        ({"file_name": "1.png", "label": ["b"]}, ["(1.png): 'label' is a list"]),
        ({"file_name": "1.png", "label": 1.5}, ["(1.png): 'label' is a float"]),
        ({"file_name": "1.png", "label": 1}, ["is a text in ", "and a whole number in "]),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path, row, parts):
    root = images(tmp_path / "set", "0.png", "1.png")
    refused(jsonl(root, {"file_name": "0.png", "label": "a"}, row), *parts)


@pytest.mark.parametrize(
    "text, part",
    [
        ("name,label\n0.png,a\n", "the names of all columns, file_name among them"),
        ("file_name,label,label\n0.png,a,b\n", "each once"),
        ("", "is empty (0 bytes)"),
        ("file_name,label\n0.png,a,b\n", "line 2 has 3 values for the 2 columns"),
        ('file_name,label\n0.png,"a\n', "is no CSV"),
    ],
)
def test_csv_that_cannot_be_is_named(tmp_path, text, part):
    refused(table(images(tmp_path / "set", "0.png"), text), "metadata.csv", part)


def test_images_without_a_row_and_classes_of_the_test_split_are_named(tmp_path):
    root = images(tmp_path / "set", "train/0.png", "train/1.png", "test/2.png")
    table(root, "file_name,label\ntrain/0.png,a\ntest/2.png,b\n")
    refused(root, "train/1.png has no row in", "1 of 2 images")
    (root / "train" / "1.png").unlink()
    assert load(root).class_names == ("a",)
    refused(root, "(test/2.png) is of the class 'b'", "Classes there: a", split="test")
    table(root, "file_name,label\ntrain/0.png,a\n")
    assert len(load(root)) == 1
    refused(root, "test/2.png has no row", split="test")


def test_text_that_is_not_utf8_is_named(tmp_path):
    root = images(tmp_path / "set", "0.png")
    (root / "metadata.csv").write_bytes(b"file_name,label\n0.png,caf\xe9\n")
    refused(root, "metadata.csv is not UTF-8 text")
