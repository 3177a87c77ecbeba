"""Folders of images: what is found, how it is split, and what is said when it cannot be."""

import io
import os
import shutil

import numpy as np
import pytest
from pictures import load, noisy, picture, save, truncate
from PIL import Image

from ddistill import data
from ddistill.data import images as images_module
from ddistill.data.listing import is_test
from ddistill.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def two_classes(tmp_path):
    root = tmp_path / "pets"
    for i in range(6):
        save(root / "dog" / f"{i}.png", picture(i))
        save(root / "cat" / "indoors" / f"{i}.png", picture(10 + i))
    return root


def test_classes_are_the_sub_folders_and_files_come_in_the_order_of_their_paths(two_classes):
    dataset = load(two_classes)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.num_classes == 2
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.labels.dtype == np.int32
    expected = [picture(10 + i) for i in range(6)] + [picture(i) for i in range(6)]
    np.testing.assert_array_equal(dataset.images, expected)
    assert dataset.images.dtype == np.uint8
    assert dataset.skipped == 0


def test_images_directly_in_the_folder_are_one_class(tmp_path):
    for i in range(3):
        save(tmp_path / "flat" / f"{i}.png", picture(i))
    dataset = load(tmp_path / "flat")
    assert dataset.class_names == ("flat",)
    assert dataset.labels.tolist() == [0, 0, 0]


def test_hidden_and_other_files_are_left_out(two_classes):
    (two_classes / "notes.txt").write_text("not an image")
    (two_classes / "cat" / "._0.png").write_bytes(b"resource fork")
    save(two_classes / ".thumbnails" / "a.png", picture(0))
    save(two_classes / "__MACOSX" / "a.png", picture(0))
    (two_classes / "papers").mkdir()
    assert len(load(two_classes)) == 12
    assert load(two_classes).class_names == ("cat", "dog")


def test_a_link_to_a_parent_folder_does_not_loop(two_classes):
    (two_classes / "cat" / "again").symlink_to(two_classes)
    assert len(load(two_classes)) == 12


def test_provenance_changes_with_the_files_and_not_with_the_place(two_classes, tmp_path):
    before = load(two_classes).provenance
    shutil.copytree(two_classes, tmp_path / "elsewhere" / "pets")
    assert load(tmp_path / "elsewhere" / "pets").provenance == before
    (two_classes / "dog" / "0.png").rename(two_classes / "dog" / "00.png")
    assert load(two_classes).provenance != before


# What is decoded how.


def test_train_and_test_folders_are_the_splits(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for name in ("a", "b"):
            for i in range(count):
                save(tmp_path / "set" / split / name / f"{i}.png", picture(i))
    assert len(load(tmp_path / "set", test_fraction=0.5)) == 8
    test = load(tmp_path / "set", "test", test_fraction=0.5)
    assert (len(test), test.class_names, test.labels.tolist()) == (4, ("a", "b"), [0, 0, 1, 1])


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_val_stands_for_test_and_a_class_may_be_missing_there(tmp_path, name):
    for i, kind in enumerate("abc"):
        save(tmp_path / "set" / "train" / kind / "0.png", picture(i))
    save(tmp_path / "set" / name / "c" / "0.png", picture(2))
    test = load(tmp_path / "set", "test")
    assert (test.labels.tolist(), test.num_classes) == ([2], 3)


def test_splits_without_classes(tmp_path):
    save(tmp_path / "set" / "train" / "0.png", picture(0))
    save(tmp_path / "set" / "test" / "1.png", picture(1))
    test = load(tmp_path / "set", "test")
    assert (test.num_classes, test.labels.tolist()) == (1, [0])
    np.testing.assert_array_equal(test.images[0], picture(1))


def test_a_class_that_is_only_in_the_test_folder_is_named(tmp_path):
    save(tmp_path / "set" / "train" / "a" / "0.png", picture(0))
    save(tmp_path / "set" / "test" / "b" / "0.png", picture(0))
    with pytest.raises(DataError, match="has the class 'b', which .*train has not"):
        load(tmp_path / "set", "test")


def test_test_images_without_training_images_are_an_error(tmp_path):
    save(tmp_path / "set" / "test" / "a" / "0.png", picture(0))
    with pytest.raises(DataError, match="images in test but none in 'train'"):
        load(tmp_path / "set")


def test_two_validation_folders_are_ambiguous(tmp_path):
    for name in ("train", "val", "valid"):
        save(tmp_path / "set" / name / "a" / "0.png", picture(0))
    with pytest.raises(DataError, match="val and valid; rename"):
        load(tmp_path / "set", "test")


def test_split_by_hash_is_disjoint_complete_and_keeps_when_files_are_added(tmp_path):
    root = tmp_path / "set"
    for i in range(60):
        save(root / f"{i:02}.png", np.full((2, 2, 3), i, np.uint8))

    def members(split):
        return set(load(root, split, test_fraction=0.25).images[:, 0, 0, 0].tolist())

    train, test = members("train"), members("test")
    assert not train & test
    assert train | test == set(range(60))
    assert 5 <= len(test) <= 25
    for i in range(60, 80):
        save(root / f"{i:02}.png", np.full((2, 2, 3), i, np.uint8))
    assert train <= members("train")
    assert test <= members("test")


def test_split_by_hash_has_the_share_asked_for():
    share = np.mean([is_test(f"class/{i}.png", 0.1) for i in range(20000)])
    assert abs(share - 0.1) < 0.01


def test_a_split_left_empty_says_what_to_change(tmp_path):
    save(tmp_path / "set" / "0.png", picture(0))
    with pytest.raises(DataError, match=r"test_fraction=0.0 leaves no test images of the 1 .* Rai"):
        load(tmp_path / "set", "test", test_fraction=0.0)


# Errors.


def test_a_missing_folder_names_the_nearest_one(two_classes):
    with pytest.raises(DataError, match=r"petz does not exist\. Did you mean '.*/pets'\?"):
        load(two_classes.parent / "petz")
    assert "petz does not exist" in data.describe(
        {"name": "folder", "path": str(two_classes.parent / "petz")}
    )


def test_a_missing_relative_folder_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"data/celeba does not exist in {tmp_path}"):
        load("data/celeba")


def test_an_archive_is_told_to_be_unpacked(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="images.zip is a file.* unpack"):
        load(tmp_path / "images.zip")


def test_an_empty_folder_and_one_without_images(tmp_path):
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty holds no files\. Images that are read: .*\.png"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "inside" / "a.npy").write_bytes(b"")
    (tmp_path / "empty" / "b.txt").write_bytes(b"")
    (tmp_path / "empty" / "c.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"only other files \(2 .npy, 1 .txt\)"):
        load(tmp_path / "empty")


def test_images_beside_class_folders_name_one_of_each(two_classes):
    save(two_classes / "stray.png", picture(0))
    with pytest.raises(DataError) as error:
        load(two_classes)
    assert "stray.png" in str(error.value)
    assert "cat/indoors/0.png" in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_without_permission_is_named(two_classes):
    (two_classes / "cat").chmod(0)
    try:
        with pytest.raises(DataError, match="cat cannot be listed: Permission denied"):
            load(two_classes)
    finally:
        (two_classes / "cat").chmod(0o755)


def test_unlike_sizes_name_both_and_are_not_skipped(two_classes):
    save(two_classes / "dog" / "7.png", picture(0, side=20))
    for limit in (2048, 0):
        with pytest.raises(DataError, match=r"dog/7\.png is 20x20x3, .* 16x16x3.*image_size"):
            load(two_classes, on_bad_image="skip", in_memory_limit_mb=limit)
    assert len(load(two_classes, image_size=16)) == 13


def damage(kind, path):
    if kind == "truncated JPEG":
        return truncate(noisy(path.with_suffix(".jpg")))
    if kind == "truncated PNG":
        return truncate(save(path.with_suffix(".png"), picture(1)))
    broken = path.with_suffix(".png")
    if kind == "text":
        broken.write_text("<html>404 not found</html>")
    elif kind == "empty":
        broken.write_bytes(b"")
    else:
        broken.symlink_to(path.parent / "nowhere.png")
    return broken


KINDS = ["truncated JPEG", "truncated PNG", "text", "empty", "dangling link"]


@pytest.mark.parametrize("limit", [2048, 0], ids=["memory", "lazy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_image_is_named_or_skipped_and_counted(two_classes, kind, limit):
    settings = {"image_size": 16, "in_memory_limit_mb": limit}
    whole = load(two_classes, **settings)
    broken = damage(kind, two_classes / "cat" / "indoors" / "2b")
    with pytest.raises(DataError) as error:
        load(two_classes, **settings)
    assert str(broken) in str(error.value)
    assert "on_bad_image='skip'" in str(error.value)

    rest = load(two_classes, on_bad_image="skip", **settings)
    assert (len(rest), rest.skipped) == (12, 1)
    assert "(1 skipped)" in rest.provenance
    np.testing.assert_array_equal(rest.labels, whole.labels)
    np.testing.assert_array_equal(rest.take(range(12)), whole.take(range(12)))


def test_the_first_bad_image_is_named_whatever_the_threads_do(tmp_path):
    for i in range(200):
        save(tmp_path / "set" / f"{i:03}.png", np.full((2, 2, 3), i, np.uint8))
    for i in (150, 77, 199):
        (tmp_path / "set" / f"{i:03}.png").write_bytes(b"broken")
    for _ in range(3):
        with pytest.raises(DataError, match=r"077\.png"):
            load(tmp_path / "set", workers=8)


def test_skipping_the_first_image_still_finds_the_common_size(two_classes):
    (two_classes / "cat" / "indoors" / "0.png").write_bytes(b"broken")
    dataset = load(two_classes, on_bad_image="skip")
    assert (len(dataset), dataset.image_shape) == (11, (16, 16, 3))


@pytest.mark.parametrize("settings", [{}, {"image_size": 16}, {"in_memory_limit_mb": 0}])
def test_nothing_but_bad_images_is_an_error_even_when_skipping(tmp_path, settings):
    (tmp_path / "set").mkdir()
    for i in range(3):
        (tmp_path / "set" / f"{i}.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"None of the 3 images of .*set can be read"):
        load(tmp_path / "set", on_bad_image="skip", **settings)


# Lazy sets.


@pytest.mark.parametrize("image_size", [0, 12])
@pytest.mark.parametrize("workers", [1, 5])
def test_lazy_equals_in_memory(two_classes, image_size, workers):
    kept = load(two_classes, image_size=image_size)
    lazy = load(two_classes, image_size=image_size, in_memory_limit_mb=0, workers=workers)
    assert not isinstance(lazy.images, np.ndarray)
    assert (len(lazy), lazy.image_shape) == (len(kept), kept.image_shape)
    assert lazy.provenance == kept.provenance
    for step in range(4):
        indices = data.batch_indices(3, step, 30, len(kept))
        np.testing.assert_array_equal(lazy.take(indices), kept.take(indices))
    with pytest.raises(IndexError):
        lazy.take([12])
    picks = [data.batch_indices(3, step, 30, 12) for step in range(2)]
    images = list(data.read_ahead(lazy.take, picks))
    np.testing.assert_array_equal(images[1], kept.take(picks[1]))


def test_the_limit_is_in_mebibytes(two_classes):
    exact = 12 * 16 * 16 * 3 / 2**20
    assert isinstance(load(two_classes, in_memory_limit_mb=exact).images, np.ndarray)
    lazy = load(two_classes, in_memory_limit_mb=exact * 0.99)
    assert not isinstance(lazy.images, np.ndarray)


def test_checking_a_lazy_set_is_remembered_until_a_file_changes(two_classes, monkeypatch):
    settings = {"image_size": 16, "in_memory_limit_mb": 0, "on_bad_image": "skip"}
    read = []
    original = images_module.read_checked
    monkeypatch.setattr(
        images_module, "read_checked", lambda s, n: (read.append(n), original(s, n))[1]
    )
    (two_classes / "dog" / "3.png").write_bytes(b"broken")
    assert load(two_classes, **settings).skipped == 1
    assert sorted(read) == list(range(12))
    assert load(two_classes, **settings).skipped == 1
    assert len(read) == 12
    save(two_classes / "dog" / "3.png", picture(3))
    assert load(two_classes, **settings).skipped == 0
    assert len(read) == 24


def test_a_cache_folder_that_cannot_be_written_does_no_harm(two_classes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(two_classes, in_memory_limit_mb=0)) == 12


def test_a_file_that_breaks_later_is_named(two_classes):
    lazy = load(two_classes, in_memory_limit_mb=0)
    truncate(two_classes / "dog" / "5.png")
    with pytest.raises(DataError, match=r"dog/5\.png cannot be read"):
        lazy.take([11])


# Mirroring, settings, description.


@pytest.mark.parametrize("flip, expected", [(None, False), (True, True), (False, False)])
def test_folders_are_mirrored_where_the_config_says_so_whatever_they_are_called(
    tmp_path, flip, expected
):
    for name in ("pets", "mnist/train", "cifar10"):
        save(tmp_path / name / "a.png", picture(0))
        dataset = load(tmp_path / name, flip=flip)
        assert dataset.hflip is expected
        assert dataset.identity["flip"] is expected
        assert "data.flip=True" in dataset.reading.flip or flip is False


def test_two_channels_are_refused(two_classes):
    with pytest.raises(ConfigError, match=r"data\.channels=2.*1 \(grey\) or 3 \(RGB\)"):
        load(two_classes, channels=2)


def test_describe_counts_without_decoding(two_classes):
    (two_classes / "cat" / "broken.png").write_bytes(b"broken")
    settings = {"name": "folder", "path": str(two_classes), "test_fraction": 0.0}
    text = data.describe(settings)
    assert "13 training and 0 test images, 2 classes" in text
    assert data.count(settings, "train") == 13
    with pytest.raises(DataError, match="leaves no test images"):
        data.count(settings, "test")
    split = {**settings, "test_fraction": 0.5}
    counts = [data.count(split, name) for name in ("train", "test")]
    assert sum(counts) == 13
    assert min(counts) > 0


def test_bytes_decode_like_files(tmp_path):
    from ddistill.data.decode import ImageSpec, decode

    buffer = io.BytesIO()
    Image.fromarray(picture(2)).save(buffer, "PNG")
    path = save(tmp_path / "a.png", picture(2))
    spec = ImageSpec(8, 3)
    np.testing.assert_array_equal(decode(buffer.getvalue(), spec), decode(path, spec))
