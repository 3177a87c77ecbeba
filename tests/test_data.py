"""The embedded digits, batches by index, normalisation, mirroring, and data settings."""

import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets

from ddistill import data
from ddistill.data.digits import _file as digits_file
from ddistill.data.digits import read_scans
from ddistill.errors import ConfigError

DIGITS = {"name": "digits"}


@pytest.fixture(scope="module")
def digits():
    return data.load(DIGITS, "train"), data.load(DIGITS, "test")


def test_digits_split_is_80_20_and_stratified(digits):
    train, test = digits
    assert (len(train), len(test)) == (1437, 360)
    assert train.image_shape == test.image_shape == (8, 8, 1)
    for split in digits:
        share = np.bincount(split.labels, minlength=10) / len(split)
        whole = np.bincount(datasets.load_digits().target) / 1797
        np.testing.assert_allclose(share, whole, atol=0.003)


def test_digits_are_the_scans_of_scikit_learn_each_once(digits):
    bunch = datasets.load_digits()
    ours = np.concatenate([d.images[..., 0] for d in digits])
    labels = np.concatenate([d.labels for d in digits])
    assert ours.dtype == np.float32
    assert labels.dtype == np.int32
    assert (ours.min(), ours.max()) == (-1, 1)

    def rows(images, classes):
        return sorted((c, image.tobytes()) for c, image in zip(classes.tolist(), images))

    levels = ((ours + 1) * 8).astype(np.uint8)
    assert rows(levels, labels) == rows(bunch.images.astype(np.uint8), bunch.target)


def test_digits_are_found_in_every_layout_of_scikit_learn(digits, monkeypatch):
    assert digits_file() is not None, "scikit-learn is imported for nothing"
    monkeypatch.setattr("ddistill.data.digits._file", lambda: None)
    monkeypatch.setattr("ddistill.data.digits.read_scans", read_scans.__wrapped__)
    for ours, name in zip(digits, ("train", "test")):
        again = data.load(DIGITS, name)
        np.testing.assert_array_equal(again.images, ours.images)
        np.testing.assert_array_equal(again.labels, ours.labels)


def test_digits_split_shares_no_scan(digits):
    train, test = ({image.tobytes() for image in d.images} for d in digits)
    assert not train & test


def test_digits_split_is_the_same_everywhere(digits):
    """A stored hash: the split must change with no version of NumPy or scikit-learn."""
    content = b"".join(((d.images + 1) * 8).astype(np.uint8).tobytes() for d in digits)
    expected = "f1c77e46820c7043"
    assert hashlib.sha256(content).hexdigest()[:16] == expected
    assert all(expected in d.provenance for d in digits)
    assert "1437 of 1797" in digits[0].provenance


def test_digits_are_not_mirrored_unless_asked(digits):
    assert not digits[0].hflip
    assert data.load({**DIGITS, "flip": True}, "train").hflip


def test_take_keeps_the_order_asked_for(digits):
    train, _ = digits
    np.testing.assert_array_equal(train.take([5, 2, 5]), train.images[[5, 2, 5]])
    with pytest.raises(IndexError):
        train.take([len(train)])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(-(2**40), 2**70),
    n=st.integers(1, 40),
    batch=st.integers(1, 90),
    first=st.integers(0, 50),
)
def test_laid_end_to_end_batches_are_permutations(seed, n, batch, first):
    """From step 0, epoch e is places e*n .. (e+1)*n - 1, whatever the batch size is."""
    steps = -(-3 * n // batch)
    places = np.concatenate([data.batch_indices(seed, s, batch, n) for s in range(steps)])
    for epoch in range(3):
        assert sorted(places[epoch * n : (epoch + 1) * n]) == list(range(n))
    later = data.batch_indices(seed, first, batch, n)
    one_by_one = [data.batch_indices(seed, first * batch + i, 1, n)[0] for i in range(batch)]
    np.testing.assert_array_equal(later, one_by_one)
    assert later.dtype == np.int64


def test_batches_depend_on_seed_and_epoch_and_on_nothing_before():
    n = 50
    epochs = [data.batch_indices(seed, step, n, n) for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(e) for e in epochs}) == 4
    again = data.batch_indices(1, 1, n, n)
    np.testing.assert_array_equal(again, epochs[3])
    again[:] = 0
    np.testing.assert_array_equal(data.batch_indices(1, 1, n, n), epochs[3])


def test_batches_are_the_same_everywhere():
    """Philox's raw stream is fixed by its authors, so stored numbers hold on every version."""
    raw = np.random.Philox(key=np.array([7, 2], np.uint64)).random_raw(6)
    np.testing.assert_array_equal(data.batch_indices(7, 2, 6, 6), np.argsort(raw))


def test_every_place_of_a_batch_sees_every_example():
    seen = np.stack([data.batch_indices(0, s, 4, 8) for s in range(400)])
    for place in range(4):
        counts = np.bincount(seen[:, place], minlength=8)
        assert (counts > 25).all()
        assert (counts < 80).all()


@pytest.mark.parametrize("step, batch, n", [(0, 0, 5), (0, 1, 0), (-1, 1, 5)])
def test_impossible_batches_are_refused(step, batch, n):
    with pytest.raises(ValueError, match=f"step={step}, batch={batch}, n={n}"):
        data.batch_indices(0, step, batch, n)


def _pick(dataset, indices):
    return dataset.take(indices), dataset.labels[indices]


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_read_ahead_batches_are_those_of_batch_indices(digits, ahead):
    train, _ = digits

    def read(step):
        return (step, *_pick(train, data.batch_indices(4, step, 7, len(train))))

    got = list(data.read_ahead(read, range(3, 8), ahead))
    assert [step for step, _, _ in got] == [3, 4, 5, 6, 7]
    for step, images, labels in got:
        indices = data.batch_indices(4, step, 7, len(train))
        np.testing.assert_array_equal(images, train.images[indices])
        np.testing.assert_array_equal(labels, train.labels[indices])


def test_read_ahead_can_be_left_early_and_passes_errors_on():
    class Broken:
        shape = (9, 1, 1, 1)

        def __len__(self):
            return 9

        def __getitem__(self, indices):
            raise OSError("disk gone")

    broken = data.Dataset("broken", Broken(), np.zeros(9, np.int32), 1, ("all",))
    with pytest.raises(OSError, match="disk gone"):
        next(data.read_ahead(lambda step: broken.take([step]), range(5)))
    test = data.load(DIGITS, "test")
    reader = data.read_ahead(lambda step: test.take([step % len(test)]), range(10**9))
    next(reader)
    reader.close()


def test_to_unit_maps_bytes_to_minus_one_and_one():
    images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    unit = data.to_unit(images)
    assert unit.dtype == jnp.float32
    assert (float(unit.min()), float(unit.max())) == (-1, 1)
    back = np.round((np.asarray(unit, np.float64) + 1) * 127.5)
    np.testing.assert_array_equal(back.ravel(), np.arange(256))


def test_to_unit_leaves_floats_and_refuses_other_integers():
    images = jnp.full((1, 2, 2, 1), 0.25)
    np.testing.assert_array_equal(data.to_unit(images), images)
    with pytest.raises(TypeError, match="int32"):
        data.to_unit(jnp.zeros((1, 2, 2, 1), jnp.int32))


def test_random_flip_mirrors_about_half_by_the_key_of_each_image():
    count = 400
    images = jax.random.normal(jax.random.key(1), (count, 3, 4, 2))
    keys = jax.random.split(jax.random.key(2), count)
    flipped = np.asarray(data.random_flip(keys, images))
    original = np.asarray(images)
    mirrored = np.asarray([np.array_equal(f, o[:, ::-1]) for f, o in zip(flipped, original)])
    kept = np.asarray([np.array_equal(f, o) for f, o in zip(flipped, original)])
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250
    order = np.random.default_rng(0).permutation(count)
    shuffled = jax.jit(data.random_flip)(keys[order], images[order])
    np.testing.assert_array_equal(shuffled, flipped[order])


@pytest.mark.parametrize(
    "given, parts",
    [
        ({}, ["data.name is missing", "digits, folder, latents, parquet, text_digits, tfds"]),
        (
            {"name": None},
            ["data.name is missing", "digits, folder, latents, parquet, text_digits, tfds"],
        ),
        ({"name": "digit"}, ["data.name='digit'", "Did you mean 'digits'?"]),
        ({"name": "digits", "flipp": True}, ["data.flipp", "Did you mean 'flip'?"]),
        ({"name": "digits", "flip": "maybe"}, ["data.flip='maybe'", "True, False, or None"]),
        (
            {"name": "digits", "path": "x"},
            ["data.path is a setting of data.name='folder' or 'latents' or 'parquet' or 'tfds'"],
        ),
        ({"name": "folder"}, ["data.path is missing"]),
        ({"name": "folder", "path": "x", "channels": 2}, ["data.channels=2", "1 (grey) or 3"]),
        ({"name": "folder", "path": "x", "image_size": -1}, ["data.image_size=-1"]),
        (
            {"name": "folder", "path": "x", "image_size": "big"},
            ["data.image_size='big'", "a whole number"],
        ),
        ({"name": "folder", "path": "x", "test_fraction": 1.0}, ["data.test_fraction=1.0"]),
        ({"name": "folder", "path": "x", "on_bad_image": "skp"}, ["Did you mean 'skip'?"]),
        ({"name": "tfds"}, ["data.path is missing", "cifar10"]),
    ],
)
def test_settings_that_cannot_be_say_what_can(given, parts):
    with pytest.raises(ConfigError) as error:
        data.load(given, "train")
    for part in parts:
        assert part in str(error.value)


def test_describe_tells_trouble_instead_of_raising():
    for bad in ({}, {"name": "digit"}, {"name": "tfds"}, {"name": "folder", "path": "/no/where"}):
        assert data.describe(bad).startswith("NOT READY: ")


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        data.load(DIGITS, "trian")


def test_defaults_load_and_are_complete():
    assert data.load(data.defaults("digits"), "test").num_classes == 10
    assert data.defaults("folder")["on_bad_image"] == "error"


def test_digits_are_counted():
    assert [data.count({"name": "digits"}, split) for split in ("train", "test")] == [1437, 360]
    with pytest.raises(ConfigError, match="split='val'"):
        data.count({"name": "digits"}, "val")


def test_describe_tells_what_is_embedded():
    assert "1797 scans" in data.describe(DIGITS)


def test_opening_digits_imports_no_tfds():
    code = (
        "import sys; from ddistill import data; data.load({'name': 'digits'}, 'train');"
        "print([m for m in ('tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
