"""In what range arrays of images are read, and what is refused."""

import numpy as np
import pytest
from inception_cases import pictures

from ddistill.errors import ConfigError, DataError
from ddistill.evaluation.metrics.image_sets import open_image_set
from ddistill.evaluation.metrics.mixed_ranges import find_parts
from ddistill.evaluation.metrics.pixel_ranges import Origin, check_range, to_pixels
from ddistill.evaluation.metrics.pixels import quantise

BYTES = pictures(20, 8)
ORIGIN = Origin("x.npz: 'arr_0'")
RNG = np.random.default_rng(0)


def with_one(values, one):
    """The same with one other value."""
    values = np.array(values)
    values[0, 0, 0, 0] = one
    return values


def blurred(low, high, excess):
    """Values of a resampling filter: `BYTES` in [low, high], with some of them a little outside."""
    values = low + BYTES / 255 * (high - low)
    return values + RNG.uniform(-excess, excess, values.shape) * (high - low)


# Arrays, the range they are read in, and how far a pixel may be from `BYTES`.
CLEAR = {
    "[0, 1]": (BYTES / 255, "0,1", 0),
    "[0, 1], one value a little below": (with_one(BYTES / 255, -0.004), "0,1", 0),
    "[0, 1], one value far below": (with_one(BYTES / 255, -1.0), "0,1", 0),
    "[0, 1], one value far above": (with_one(BYTES / 255, 200.0), "0,1", 0),
    "[0, 1] after a filter": (blurred(0, 1, 0.03), "0,1", 8),
    "[0, 1], half precision": ((BYTES / 255).astype(np.float16), "0,1", 0),
    "[0, 1], single precision": ((BYTES / 255).astype(np.float32), "0,1", 0),
    "[-1, 1]": (BYTES / 127.5 - 1, "-1,1", 0),
    "[-1, 1], half precision": ((BYTES / 127.5 - 1).astype(np.float16), "-1,1", 0),
    "[-1, 1], one value far above": (with_one(BYTES / 127.5 - 1, 255.0), "-1,1", 0),
    "[-1, 1] of a sampler that does not clip": (blurred(-1, 1, 0.05), "-1,1", 13),
    "[0, 255]": (BYTES.astype(np.float32), "0,255", 0),
    "[0, 255], half precision": (BYTES.astype(np.float16), "0,255", 0),
    "[0, 255], one value a little below": (with_one(BYTES * 1.0, -3.0), "0,255", 0),
    "[0, 255] after a filter": (blurred(0, 255, 0.03), "0,255", 9),
    "int64": (BYTES.astype(np.int64), "0,255", 0),
    "int16": (BYTES.astype(np.int16), "0,255", 0),
    "int16 after a filter": (with_one(BYTES.astype(np.int16), -4), "0,255", 0),
    "uint16": (BYTES.astype(np.uint16), "0,255", 0),
    "16 bits": (BYTES.astype(np.uint16) * 257, "0,65535", 0),
    "big endian": ((BYTES / 255).astype(">f4"), "0,1", 0),
}


@pytest.mark.parametrize("name", CLEAR)
def test_ranges_that_are_clear(name):
    array, wanted, most = CLEAR[name]
    pixels, found = to_pixels(array, ORIGIN)
    assert found == wanted
    assert pixels.dtype == np.uint8
    off = np.abs(pixels.astype(int) - BYTES)
    off[0, 0, 0, 0] = 0  # where one value is another one
    assert off.max() <= most


def test_quantised_images_show_their_range_where_nothing_else_does():
    """No dark pixel, or none but dark ones: the steps between values tell."""
    light, dark = BYTES // 4 + 180, BYTES // 4
    for pixels in (light, dark):
        for array, wanted in ((pixels / 255, "0,1"), (pixels / 127.5 - 1, "-1,1")):
            made, found = to_pixels(array.astype(np.float32), ORIGIN)
            assert found == wanted
            np.testing.assert_array_equal(made, pixels)


def test_dark_images_without_steps():
    dark = -1 + RNG.uniform(0, 0.1, BYTES.shape)
    pixels, found = to_pixels(dark, ORIGIN)
    assert found == "-1,1"
    assert pixels.max() <= 13


def test_types_that_say_their_range():
    np.testing.assert_array_equal(to_pixels(BYTES > 99, ORIGIN)[0], (BYTES > 99) * np.uint8(255))
    assert to_pixels(BYTES, ORIGIN) == (BYTES, "")
    black = np.zeros((2, 8, 8, 3), np.uint8)
    assert to_pixels(black, ORIGIN) == (black, "")


AMBIGUOUS = {
    "light, without steps": RNG.uniform(0.4, 1, BYTES.shape),
    "dark [0, 1] or grey [-1, 1]": RNG.uniform(0, 0.3, BYTES.shape),
    "dark [0, 255]": (BYTES // 50).astype(np.float32),
    "black [0, 255], or black and white": (BYTES > 99).astype(np.float32),
    "dark int64": (BYTES // 50).astype(np.int64),
    "uint8 of zeros and ones": (BYTES > 99).astype(np.uint8),
    "12 bits": BYTES.astype(np.uint16) * 16,
    "percent": BYTES / 2.55,
    "[-0.5, 0.5]": BYTES / 255 - 0.5,
    "[-0.5, 0.5] after a filter": blurred(-0.5, 0.5, 0.03),
    "of mean 0 and deviation 1": (BYTES - BYTES.mean()) / BYTES.std(),
    "[-128, 127]": (BYTES.astype(np.int16) - 128),
    "int8": (BYTES.astype(np.int16) - 128).astype(np.int8),
    "one grey": np.full(BYTES.shape, 0.5),
    "all 0": np.zeros(BYTES.shape, np.float32),
    "all -1": np.full(BYTES.shape, -1.0),
    "all 200": np.full(BYTES.shape, 200.0),
    "noise of another scale": 50 * RNG.standard_normal(BYTES.shape),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ranges_that_are_not_clear_are_refused(name):
    with pytest.raises(DataError, match=r"x\.npz: 'arr_0' .* has values from .* Give --range="):
        to_pixels(AMBIGUOUS[name], ORIGIN)


def test_a_range_that_is_stated():
    dark = RNG.uniform(0, 0.3, BYTES.shape)
    for stated, white in (("0,1", 77), ("-1,1", 166), ("0,255", 0)):
        pixels, found = to_pixels(dark, ORIGIN, stated)
        assert found == stated
        assert abs(int(pixels.max()) - white) <= 1
    np.testing.assert_array_equal(
        to_pixels((BYTES > 99).astype(np.uint8), ORIGIN, "0,1")[0], (BYTES > 99) * np.uint8(255)
    )
    ones = (BYTES > 99).astype(np.uint8)
    assert to_pixels(ones, ORIGIN, "0,255") == (ones, "")
    # The type of bytes contradicts the flag.
    for array in (BYTES, BYTES > 99):
        with pytest.raises(DataError, match="leave --range=-1,1 out"):
            to_pixels(array, ORIGIN, "-1,1")


@pytest.mark.parametrize(
    "array",
    [
        BYTES.astype(np.uint16) * 5 // 4,
        RNG.integers(0, 300, BYTES.shape).astype(np.uint16),
        (RNG.normal(100, 40, BYTES.shape) / 255 - 0.45) / 0.225,
        RNG.normal(215, 25, BYTES.shape) / 127.5 - 1,
    ],
    ids=["beyond bytes", "dark 16 bits", "standardised", "light in [-1, 1]"],
)
def test_ranges_that_only_seem_to_fit_are_refused(array):
    with pytest.raises(DataError, match="fit several ranges or none"):
        to_pixels(array, ORIGIN)


@pytest.mark.parametrize(
    "array, stated",
    [
        (BYTES / 127.5 - 1, "0,1"),
        (BYTES * 1.0, "0,1"),
        (BYTES * 1.0, "-1,1"),
        (BYTES.astype(np.uint16) * 257, "0,255"),
    ],
)
def test_a_stated_range_that_the_values_contradict(array, stated):
    with pytest.raises(DataError, match=f"% lie outside of --range={stated}"):
        to_pixels(array, ORIGIN, stated)


@pytest.mark.parametrize(
    "array, message",
    [
        (with_one(BYTES / 255, np.nan), "not finite; the sampler has diverged"),
        (with_one(BYTES / 127.5 - 1, np.inf), "not finite; the sampler has diverged"),
        (BYTES.astype(np.complex64), r"\(complex64\) must hold numbers"),
        (BYTES.astype("U3"), r"must hold numbers"),
    ],
)
@pytest.mark.parametrize("stated", ["", "0,1"])
def test_values_that_are_no_pixels(array, message, stated):
    with pytest.raises(DataError, match=message):
        to_pixels(array, ORIGIN, stated)


@pytest.mark.parametrize("kind", ["u1", "u2", "i4", "f4", "?"])
@pytest.mark.parametrize("stated", ["", "0,1"])
def test_arrays_without_images(kind, stated):
    for shape in ((0,), (0, 8, 8, 3), (4, 0, 8, 3), ()):
        with pytest.raises(DataError, match=r"x\.npz.* holds no images: its shape is") as error:
            to_pixels(np.zeros(shape, kind), ORIGIN, stated)
        assert "\n" not in str(error.value)
        assert find_parts(np.zeros(shape, kind)).first() == {}


def test_how_ranges_are_written():
    for text in ("0,1", "[0, 1]", " 0 , 1 "):
        assert check_range("--range", text) == "0,1"
    assert check_range("--range", "") == ""
    with pytest.raises(ConfigError, match=r"--range='0,100' is not known. Allowed: 0,1, -1,1"):
        check_range("--range", "0,100")


# ---------------------------------------------------------------------- several ranges in one array

# Of full contrast, so that every image says what range it is in.
MANY = np.clip((pictures(40, 8, seed=1) - 128.0) * 2 + 128, 0, 255).astype(np.uint8)
RANGE_OF = {
    "0,1": lambda x: x / 255,
    "-1,1": lambda x: x / 127.5 - 1,
    "0,255": lambda x: x.astype(np.float64),
    "0,65535": lambda x: x.astype(np.float64) * 257,
}


def smooth(x):
    """The same without steps of uint8, as a sampler makes them."""
    return np.clip(x + np.random.default_rng(3).uniform(-0.4, 0.4, x.shape), 0, 255)


def mixture(first, second, chosen, base=MANY):
    """Images in the range `first`, those in `chosen` in the range `second`."""
    images = RANGE_OF[first](base)
    images[chosen] = RANGE_OF[second](base[chosen])
    return images


HALF, TURNS, ONE = np.s_[20:], np.s_[1::2], np.s_[7:8]


@pytest.mark.parametrize("chosen, number", [(HALF, 20), (TURNS, 1), (ONE, 7)])
@pytest.mark.parametrize(
    "first, second",
    [("0,255", "0,1"), ("0,1", "0,255"), ("0,255", "-1,1"), ("-1,1", "0,255"), ("0,1", "-1,1")],
)
@pytest.mark.parametrize("base", [MANY, smooth(MANY)], ids=["uint8 once", "smooth"])
def test_images_of_several_ranges_are_refused(base, first, second, chosen, number):
    found = (
        rf"x\.npz.* of several ranges: image 0 in \[{first.replace(',', ', ')}\], image {number} "
        rf"in \[{second.replace(',', ', ')}\] \(counted from 0\)\..* give --range="
    )
    with pytest.raises(DataError, match=found) as error:
        to_pixels(mixture(first, second, chosen, base).astype(np.float32), ORIGIN)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("chosen, number", [(HALF, 20), (TURNS, 1), (ONE, 7)])
def test_whole_numbers_of_several_ranges_are_refused(chosen, number):
    images = mixture("0,65535", "0,255", chosen)
    for kind in (np.int32, np.uint32):
        with pytest.raises(DataError, match=rf"0, 65535\], image {number} in \[0, 255\]"):
            to_pixels(images.astype(kind), ORIGIN)
    # This type has one range.
    assert to_pixels(images.astype(np.uint16), ORIGIN)[1] == "0,65535"


def test_light_images_of_another_range_are_a_group():
    """Without steps a light image fits [0, 1] and [-1, 1]; many of them do not."""
    for chosen in (HALF, TURNS):
        with pytest.raises(DataError, match="several ranges"):
            to_pixels(mixture("-1,1", "0,1", chosen, smooth(MANY)), ORIGIN)


def test_halves_of_low_contrast_are_groups():
    """Images of [0, 1] that do not reach down to 0 are one too where they are many."""
    low = 0.05 + 0.9 * smooth(MANY) / 255
    for chosen in (HALF, TURNS):
        for other in ("-1,1", "0,255"):
            images = RANGE_OF[other](smooth(MANY))
            images[chosen] = low[chosen]
            with pytest.raises(DataError, match="several ranges"):
                to_pixels(images, ORIGIN)
            images[chosen] += np.random.default_rng(4).normal(0, 0.03, low[chosen].shape)
            with pytest.raises(DataError, match="several ranges"):
                to_pixels(images, ORIGIN)


def test_few_images_of_a_sampler_that_does_not_clip_are_a_group():
    images = smooth(MANY)
    images[7:10] = images[7:10] / 255 + np.random.default_rng(4).normal(0, 0.06, (3, 8, 8, 3))
    with pytest.raises(DataError, match="several ranges"):
        to_pixels(images, ORIGIN)


def brightness(low, high):
    """Images of contrasts and brightness of all kinds within [low, high]."""
    rng = np.random.default_rng(5)
    most = rng.uniform(0, 1, (60, 1, 1, 1))
    least = most * rng.uniform(0, 1, (60, 1, 1, 1))
    return low + (high - low) * (least + (most - least) * rng.random((60, 8, 8, 3)))


def replaced(images, value, chosen=np.s_[3:6]):
    images = np.array(images, np.float64)
    images[chosen] = value
    return images


BIG = smooth(np.clip((pictures(64, 8, seed=2) - 128.0) * 2 + 128, 0, 255))
# Of [-1, 1], none light enough to come near the lightest ones.
DARKER = (RNG.uniform(-1, 1, (54, 8, 8, 3)) - 1) * 0.5
NIGHT = RNG.integers(0, 2, (3, 8, 8, 3))
HONEST = {
    "[0, 255], nearly black": (replaced(MANY, NIGHT), "0,255"),
    "[0, 255], half nearly black": (
        replaced(MANY, RNG.integers(0, 2, (20, 8, 8, 3)), HALF),
        "0,255",
    ),
    "[0, 255], dark": (replaced(MANY, 20 * RNG.random((3, 8, 8, 3))), "0,255"),
    "[0, 255], all 0": (replaced(MANY, 0), "0,255"),
    "[0, 255], all 1": (replaced(MANY, 1), "0,255"),
    "[0, 255] of all kinds": (brightness(0, 255), "0,255"),
    "[0, 255], each darker than the last": (
        MANY * 0.85 ** np.arange(40).reshape(-1, 1, 1, 1),
        "0,255",
    ),
    "[0, 255], black with noise": (replaced(MANY, RNG.normal(0, 0.2, (3, 8, 8, 3))), "0,255"),
    "[-1, 1], all grey": (replaced(smooth(MANY) / 127.5 - 1, 0), "-1,1"),
    "[-1, 1], all white": (replaced(smooth(MANY) / 127.5 - 1, 1), "-1,1"),
    "[-1, 1] of uint8, light": (replaced(MANY, MANY[3:6] // 4 + 180) / 127.5 - 1, "-1,1"),
    "[-1, 1], one light": (replaced(smooth(MANY) / 127.5 - 1, RNG.random((8, 8, 3)), ONE), "-1,1"),
    "[-1, 1] of all kinds": (brightness(-1, 1), "-1,1"),
    "[-1, 1], not clipped": (replaced(smooth(MANY) / 127.5 - 1, 1.3, ONE), "-1,1"),
    "[0, 1] of all kinds": (brightness(0, 1), "0,1"),
    "[0, 1], one grey": (replaced(smooth(MANY) / 255, 0.5), "0,1"),
    "[0, 1], black and white ones": (replaced(smooth(MANY) / 255, NIGHT), "0,1"),
    "16 bits, dark": (
        replaced(MANY * 257.0, RNG.integers(0, 99, (3, 8, 8, 3))).astype("u2"),
        "0,65535",
    ),
    "16 bits, a third dark": (
        replaced(BIG * 257.0, RNG.integers(0, 221, (20, 8, 8, 3)), np.s_[44:]).astype("u2"),
        "0,65535",
    ),
    "big endian, dark": (
        replaced(BIG * 257.0, RNG.integers(0, 221, (20, 8, 8, 3)), np.s_[44:]).astype(">u2"),
        "0,65535",
    ),
    "[-1, 1], ten light": (
        replaced(BIG / 127.5 - 1, RNG.uniform(0.1, 1, (10, 8, 8, 3)), np.s_[54:]),
        "-1,1",
    ),
    "[-1, 1], ten light among darker ones": (
        np.concatenate([0.1 + 0.9 * RNG.random((10, 8, 8, 3)), DARKER]),
        "-1,1",
    ),
    "[0, 255], five of nearly black floats": (
        replaced(BIG, 1.24 * RNG.random((5, 8, 8, 3)), np.s_[3:8]),
        "0,255",
    ),
    "[0, 255], nearly black pictures": (
        replaced(BIG, BIG[3:8] / 255 * np.linspace(0.8, 1.2, 5).reshape(-1, 1, 1, 1), np.s_[3:8]),
        "0,255",
    ),
    "bytes, black and white": (replaced(MANY, NIGHT).astype(np.int64), "0,255"),
}


@pytest.mark.parametrize("name", HONEST)
def test_images_that_say_little_go_with_the_others(name):
    array, wanted = HONEST[name]
    for images in (array, array.astype(np.float32) if array.dtype == np.float64 else array):
        assert to_pixels(images, ORIGIN)[1] == wanted


def test_a_range_that_is_stated_for_images_of_several():
    """What leaves it is refused; what lies in it is taken as the user says."""
    images = mixture("0,1", "0,255", ONE)
    for stated in ("0,1", "-1,1"):
        with pytest.raises(
            DataError, match=f"image 7 has values .* lie outside of --range={stated}"
        ):
            to_pixels(images, ORIGIN, stated)
    assert to_pixels(images, ORIGIN, "0,255")[1] == "0,255"


def test_few_values_of_small_images_say_nothing():
    images = pictures(40, 4, seed=1)[..., :1] / 255
    for value in (-1.0, 200.0):
        assert to_pixels(with_one(images, value), ORIGIN)[1] == "0,1"


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "shape, advice",
    [
        ((4, 3, 8, 8), r"save x.transpose\(0, 2, 3, 1\)"),
        ((4, 1, 8, 8), r"save x.transpose\(0, 2, 3, 1\)"),
        ((4, 3, 8, 3), r"save x.transpose\(0, 2, 3, 1\)"),
        ((4, 3, 3, 3), r"save x.transpose\(0, 2, 3, 1\)"),
        ((4, 8, 8), r"images as x\[..., None\]"),
        ((8, 8, 3), r"single image as x\[None\], grey images as x\[..., None\]"),
        ((4, 8, 8, 4), "Composite transparent images onto a background"),
        ((8, 8, 3, 40), r"not \[N, H, W, 1 or 3\]\."),
        ((0, 8, 8, 3), r"not \[N, H, W, 1 or 3\]\."),
        ((6,), r"not \[N, H, W, 1 or 3\]\."),
    ],
)
def test_axes_are_not_guessed(tmp_path, shape, advice):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=rf"x\.npy: the array has the shape .*{advice}"):
        open_image_set(tmp_path / "x.npy")


def test_files_and_what_is_said_of_them(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=BYTES / 255, arr_1=np.arange(20))
    np.save(tmp_path / "x.npy", BYTES / 255)
    for name in ("x.npz", "x.npy"):
        made = open_image_set(tmp_path / name)
        np.testing.assert_array_equal(made.images, BYTES)
        assert made.values == "float64 read as [0, 1]"
    # Kept features are found by the digest, and belong to the range that was used.
    other = open_image_set(tmp_path / "x.npy", values="0,255")
    assert other.digest != made.digest
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.png is a file; give a folder of images"):
        open_image_set(tmp_path / "x.png")


def test_samples_of_our_runs_are_in_minus_one_to_one(tmp_path):
    """A student that has learnt nothing gives images whose spread says nothing."""
    flat = np.full((3, 8, 8, 1), 0.25, np.float32)
    np.savez(tmp_path / "student.npz", images=flat, digest="x", ms_per_image=1.0)
    assert set(np.unique(open_image_set(tmp_path / "student.npz").images)) == {159}


def test_quantise_takes_floats_and_bytes_alone():
    for kind in (np.int64, bool, np.uint16):
        with pytest.raises(ValueError, match="uint8 or floats in .-1, 1. are needed"):
            quantise(BYTES.astype(kind))
    half = (BYTES / 127.5 - 1).astype(np.float16)
    np.testing.assert_array_equal(quantise(half), BYTES)
