"""Published protocols: resizing as Pillow does it by hand, prompts, sets of images, strings."""

import dataclasses
import io

import jax
import numpy as np
import pytest
import texted
from inception_cases import pictures, random_state
from PIL import Image
from scored import save_folder

from ddistill.data import load
from ddistill.errors import ConfigError, DataError
from ddistill.evaluation.metrics.detector import RESIZES, inception_detector
from ddistill.evaluation.metrics.geometry import Geometry, clean_resize, shortest_side
from ddistill.evaluation.metrics.protocol_sets import (
    check_real,
    fitted,
    real_set,
    sample_fit,
    sample_set,
)
from ddistill.evaluation.metrics.protocols import (
    PROMPTED_PARTS,
    PROTOCOLS,
    PromptedParts,
    Prompts,
    prompted_parts,
    protocol_named,
    read_prompt_file,
)
from ddistill.evaluation.records.protocol import Protocol, variant
from ddistill.interop.inception import InceptionWeights, from_state_dict
from ddistill.networks.inception import Inception, shapes

DMD, BK = PROTOCOLS["coco30k_dmd"], PROTOCOLS["coco30k_bk"]
TINY = dataclasses.replace(
    DMD, name="tiny", prompts=3, real=4, geometry=Geometry(8, crop=True, filter="lanczos")
)


def wide(seed=0):
    """A picture of 40 x 23 pixels, and its array."""
    pixels = pictures(1, 40, seed)[0][:23]
    return Image.fromarray(pixels), pixels


def as_jpeg(image, quality=75):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


# ---------------------------------------------------------------------------------- the geometry


def test_one_protocol_crops_and_resizes_with_lanczos():
    image, pixels = wide()
    # (40 - 23) / 2 = 8.5 is rounded to the even 8.
    square = Image.fromarray(pixels[:, 8:31])
    wanted = np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(DMD.geometry(image), wanted)
    np.testing.assert_array_equal(sample_fit(DMD)(image), wanted)
    assert str(DMD.geometry) == "centre-lanczos-256"


def test_the_other_distorts_with_bicubic_and_stores_twice_as_jpeg():
    image, _ = wide()
    resized = image.resize((256, 256), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(BK.geometry(image), np.asarray(as_jpeg(resized)))
    stored = as_jpeg(image)
    wanted = np.asarray(as_jpeg(stored.resize((256, 256), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(sample_fit(BK)(image), wanted)
    # A sample that is a JPEG file already is not encoded again.
    np.testing.assert_array_equal(sample_fit(BK)(stored), wanted)
    assert str(BK.geometry) == "whole-bicubic-256-jpeg75"


def test_grey_and_transparent_images_become_rgb():
    image, pixels = wide()
    grey = image.convert("L")
    np.testing.assert_array_equal(DMD.geometry(grey), DMD.geometry(grey.convert("RGB")))
    clear = image.copy()
    clear.putalpha(0)
    np.testing.assert_array_equal(DMD.geometry(clear), DMD.geometry(image))
    both = np.stack([pixels, pixels[::-1]])[..., :1]
    made = fitted(both, DMD.geometry)
    assert made.shape == (2, 256, 256, 3)
    np.testing.assert_array_equal(made[1], DMD.geometry(Image.fromarray(both[1, ..., 0])))


def test_an_image_of_the_size_is_left_alone():
    pixels = pictures(1, 256)[0]
    np.testing.assert_array_equal(DMD.geometry(Image.fromarray(pixels)), pixels)


def test_clip_sees_the_centre_of_the_shorter_side():
    image, pixels = wide()
    resized = image.resize((20, 12), Image.Resampling.BICUBIC)  # 12 * 40 / 23 = 20.87
    np.testing.assert_array_equal(shortest_side(pixels, 12), np.asarray(resized)[:, 4:16])


def test_clean_resizing_is_pillows_of_floats_without_rounding():
    pixels = pictures(1, 17)[0]
    found = clean_resize(pixels, 29)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 255
    for c in range(3):
        one = Image.fromarray(pixels[..., c].astype(np.float32), mode="F")
        wanted = np.asarray(one.resize((29, 29), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(found[..., c], wanted.clip(0, 255))
    assert np.abs(found - found.round()).max() > 0.1


# ------------------------------------------------------------------------------ FID's resizing


@pytest.fixture(scope="module")
def first_layers():
    """FID's network up to its first 64 features, with random weights."""
    params = from_state_dict(random_state())
    taps = shapes(("64",))
    return InceptionWeights({name: params[name] for name in taps}, "0" * 64)


def stem(weights, floats):
    """The features of images of 299 pixels in 0..255, without any resizing."""
    made = Inception(("64",)).apply({"params": weights.params}, floats)
    return np.asarray(made["64"])


def half_pixel(pixels, side):
    """Bilinear with half-pixel centres, written down for one axis after the other."""
    x = pixels.astype(np.float64)
    for axis in (0, 1):
        size = x.shape[axis]
        place = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        high = np.minimum(low + 1, size - 1)
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


@pytest.mark.parametrize("resize", ["clean", "torch"])
def test_fids_network_sees_what_the_published_code_gives_it(first_layers, resize):
    pixels = pictures(4, 64)
    detector = inception_detector(first_layers, 4, "64", logits=False, resize=resize)
    found = np.asarray(detector.apply(pixels)[0])
    if resize == "clean":
        floats = np.stack([clean_resize(p, 299) for p in pixels])
    else:
        # pytorch-fid hands on 2 x / 255 - 1, and the network makes (y - 128) / 128 of y.
        floats = np.stack([(2 * half_pixel(p, 299) / 255 - 1) * 128 + 128 for p in pixels])
    wanted = stem(first_layers, floats.astype(np.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    plain = inception_detector(first_layers, 4, "64", logits=False)
    assert np.abs(found - np.asarray(plain.apply(pixels)[0])).max() > 1e-3
    assert detector.resize == RESIZES[resize]
    assert detector.text == f"{plain.text}/{resize}"


@pytest.mark.parity
def test_the_resizing_of_pytorch_is_bilinear_with_half_pixel_centres():
    torch = pytest.importorskip("torch")
    pixels = pictures(1, 64)[0]
    given = torch.tensor(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    made = torch.nn.functional.interpolate(given, (299, 299), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(
        made[0].numpy().transpose(1, 2, 0), half_pixel(pixels, 299), atol=1e-3
    )
    ours = jax.image.resize(pixels.astype(np.float32), (299, 299, 3), "linear", antialias=False)
    np.testing.assert_allclose(ours, half_pixel(pixels, 299), atol=1e-3)


# ------------------------------------------------------------------------------------ the prompts


def test_prompts_are_lines_or_a_table(tmp_path):
    lines, table = tmp_path / "p.txt", tmp_path / "p.csv"
    lines.write_bytes("a cat\r\n caf\u0065\u0301 \na cat\n".encode())
    table.write_text('file_name,text\nb.jpg,"a cat, small"\na.jpg,two dogs\n')
    found = read_prompt_file(lines, "--prompts", 3)
    assert found.texts == ("a cat", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "a cat")
    assert (found.files, found.name, len(found.digest)) == ((), "p.txt", 64)
    assert read_prompt_file(table, "--prompts").texts == ("a cat, small", "two dogs")
    assert read_prompt_file(table, "--prompts").files == ("b.jpg", "a.jpg")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.txt", b"one\ntwo\n", "--prompts=.*p.txt has 2 prompts; the protocol has 30,000"),
        ("p.txt", b"one\n\nthree\n", "prompt 2 is empty"),
        ("p.txt", b"\xff\xfa\n", "is not UTF-8 text, at byte 0"),
        ("p.csv", b"name,caption\n0.jpg,a\n", "columns name, caption; .* file_name and text"),
        ("none.txt", None, "it cannot be read"),
    ],
)
def test_prompts_that_cannot_be_scored_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_prompt_file(tmp_path / name, "--prompts", DMD.prompts)
    assert "\n" not in str(caught.value)


def test_missing_prompts_and_unknown_protocols_are_refused():
    with pytest.raises(ConfigError, match="--prompts is missing"):
        read_prompt_file("", "--prompts")
    with pytest.raises(ConfigError, match="Did you mean 'coco30k_dmd'. Allowed: coco30k_bk, coco"):
        protocol_named("coco30_dmd", "--protocol")


# -------------------------------------------------------------------------------- sets of images


def prompts(count, files=()):
    return Prompts("p.txt", ("a cat",) * count, files, "ab" * 32)


def opened(path, given):
    return sample_set(path, given, sample_fit(TINY), 8, "fit")


def test_samples_are_in_natural_order_or_in_that_of_the_table(tmp_path):
    pixels = pictures(3, 12)
    for number, image in zip((1, 2, 10), pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    wanted = fitted(pixels, TINY.geometry)
    found = opened(tmp_path, prompts(3))
    np.testing.assert_array_equal(found.images[np.arange(3)], wanted)
    assert (found.size, len(found), found.resize) == ("8x8", 3, "fit")
    named = opened(tmp_path, prompts(3, ("10.jpg", "1.jpg", "2.jpg")))
    np.testing.assert_array_equal(named.images[np.arange(3)], wanted[[2, 0, 1]])
    assert named.digest != found.digest
    np.savez(tmp_path / "samples.npz", arr_0=pixels)
    array = opened(tmp_path / "samples.npz", prompts(3))
    np.testing.assert_array_equal(array.images[np.array([2, 0])], wanted[[2, 0]])


def test_another_number_of_samples_is_refused(tmp_path):
    save_folder(tmp_path, pictures(3, 12))
    with pytest.raises(DataError, match=r"has 3 images, and p.txt 4 prompts; one image for each"):
        opened(tmp_path, prompts(4))
    with pytest.raises(DataError, match=r"lacks 1 of the images .* 'c'"):
        opened(tmp_path, prompts(3, ("0000.png", "0001.png", "c.png")))
    np.savez(tmp_path / "samples.npz", arr_0=pictures(2, 12))
    with pytest.raises(DataError, match="has 2 images"):
        opened(tmp_path / "samples.npz", prompts(3))


def test_real_images_are_counted_and_brought_to_the_size(tmp_path):
    pixels = pictures(4, 12)
    save_folder(tmp_path / "real", pixels)
    found = real_set(tmp_path / "real", TINY, "real")
    np.testing.assert_array_equal(found.images[np.arange(4)], fitted(pixels, TINY.geometry))
    assert found.resize == "centre-lanczos-8"
    with pytest.raises(DataError, match=r"real=.* has 4 images; coco30k_dmd compares with 40,504"):
        check_real(tmp_path / "real", DMD, "real")
    with pytest.raises(DataError, match=r"does not exist. Give the folder of DMD2"):
        check_real(tmp_path / "none", DMD, "real")
    (tmp_path / "real" / "0001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"0001.png cannot be read"):
        real_set(tmp_path / "real", TINY, "real").images[np.arange(4)]


def test_a_latent_set_gives_the_images_that_it_keeps(tmp_path):
    path = texted.latent_set(tmp_path, "pixels", 8)
    kept = load({"name": "latents", "path": str(path)}, "test").as_pictures()
    protocol = dataclasses.replace(TINY, real=len(kept))
    found = real_set(path, protocol, "real")
    np.testing.assert_array_equal(found.images[np.arange(len(kept))], kept.take(range(len(kept))))
    assert (found.resize, found.size) == ("centre-lanczos-8", "8x8")
    for changes, message in (
        ({"real": 99}, f"keeps no split of 99 images of 8x8, .*test: {len(kept)} images of 8x8"),
        ({"geometry": Geometry(16, True, "lanczos")}, "keeps no split .* of 16x16"),
        ({"geometry": BK.geometry}, "is a latent set, of centre squares .* needs whole-bicubic"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            check_real(path, dataclasses.replace(protocol, **changes), "real")
        assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- strings


def test_the_string_of_a_protocol_says_what_its_numbers_depend_on():
    given = Prompts("my prompts.txt", ("a",) * 3, (), "1a2b3c4d" * 8)
    parts = prompted_parts(DMD, given, "val2014:40504@99", "inception@67/2048/clean", "clip-14@ab")
    assert parts.string() == (
        "protocol=coco30k_dmd prompts=my_prompts.txt:3@1a2b3c4d real=val2014:40504@99 "
        "fit=centre-lanczos-256 fid=inception@67/2048/clean clip_model=clip-14@ab "
        "prefix=A_photo_depicts"
    )
    assert prompted_parts(None, given, clip="clip-14@ab").string() == (
        "protocol=none prompts=my_prompts.txt:3@1a2b3c4d real=none fit=none fid=none "
        "clip_model=clip-14@ab prefix=none"
    )


PLAIN = Protocol("none", "none", "none", 1, 16, "ddim", 4, None, None, 0, True)
RESAMPLED = dataclasses.replace(PLAIN, floor=4, count=4, subsets=9, splits=1, subset_seed=0)


@pytest.mark.parametrize("plain", [PLAIN, RESAMPLED], ids=["short", "resampled"])
def test_protocol_strings_of_results_hold_it_and_can_be_read(plain):
    parts = prompted_parts(BK, prompts(3), real="val2014:4@99")
    whole = dataclasses.replace(plain, prompted=parts)
    assert whole.string() == f"{plain.string()} {parts.string()}"
    assert Protocol.parse(whole.string()) == whole
    assert Protocol.parse(plain.string()) == plain
    assert variant(whole.string()) != variant(plain.string())
    for missing in PROMPTED_PARTS:
        rest = " ".join(p for p in whole.string().split() if not p.startswith(f"{missing}="))
        with pytest.raises(ValueError, match=f"missing: .*'{missing}'"):
            Protocol.parse(rest)


def test_parts_with_spaces_are_refused():
    with pytest.raises(ValueError, match=r"protocol.prefix='a b' must be a word"):
        dataclasses.replace(PLAIN, prompted=PromptedParts(*"abcdef", "a b"))
