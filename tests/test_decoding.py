"""How images are decoded: formats, colours, orientation, size."""

import struct
import zlib

import numpy as np
import pytest
from pictures import load, only, picture, save
from PIL import Image

from ddistill import data
from ddistill.data.decode import ImageSpec, decode
from ddistill.data.samples import has_sixteen_bit_colours
from ddistill.errors import DataError

GRADIENT = np.linspace(0, 255, 16 * 16).reshape(16, 16)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "PNG"])
def test_lossless_formats_give_their_pixels(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    save(tmp_path / "x" / f"a.{suffix}", picture(3), **options)
    np.testing.assert_array_equal(only(tmp_path / "x"), picture(3))


def test_formats_mix_in_one_folder(tmp_path):
    root = tmp_path / "x"
    for i, suffix in enumerate(["jpg", "jpeg", "png", "gif", "webp", "bmp"]):
        save(root / f"{i}.{suffix}", picture(5))
    dataset = load(root)
    assert dataset.images.shape == (6, 16, 16, 3)
    error = np.abs(dataset.images.astype(int) - picture(5)).mean(axis=(1, 2, 3))
    # GIF keeps 256 colours; JPEG and WebP lose a little.
    assert (error < 4).all()


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (40, 200)]
    (tmp_path / "x").mkdir()
    frames[0].save(tmp_path / "x" / "a.gif", save_all=True, append_images=frames[1:])
    assert (only(tmp_path / "x") == 40).all()


def test_grey_becomes_rgb_and_rgb_becomes_grey(tmp_path):
    grey = GRADIENT.astype(np.uint8)
    save(tmp_path / "grey" / "a.png", grey)
    rgb = only(tmp_path / "grey", channels=3)
    np.testing.assert_array_equal(rgb, np.repeat(grey[..., None], 3, -1))
    assert only(tmp_path / "grey", channels=1).shape == (16, 16, 1)

    save(tmp_path / "green" / "a.png", np.full((4, 4, 3), (0, 100, 0), np.uint8))
    luma = only(tmp_path / "green", channels=1)
    assert luma.shape == (4, 4, 1)
    assert (np.abs(luma.astype(float) - 58.7) < 1).all()


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.array([[0, 128, 257, 257 * 100], [65535, 257 * 200 + 128, 32768, 1]], np.uint16)
    save(tmp_path / "x" / "a.png", Image.fromarray(values))
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(only(tmp_path / "x", channels=1)[..., 0], expected)
    np.testing.assert_array_equal(only(tmp_path / "x", channels=3)[..., 1], expected)


@pytest.mark.parametrize("dtype, word", [(np.float32, "float"), (np.int32, "integer")])
def test_values_without_a_fixed_range_are_refused(tmp_path, dtype, word):
    save(tmp_path / "x" / "a.tif", Image.fromarray((GRADIENT * 1000).astype(dtype)))
    with pytest.raises(DataError, match=rf"a\.tif cannot be read: 32-bit {word} values"):
        load(tmp_path / "x")


def test_a_palette_is_looked_up_before_grey(tmp_path):
    image = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    image.putpalette([250, 250, 250] + [0] * 765)
    save(tmp_path / "x" / "a.png", image)
    assert (only(tmp_path / "x", channels=1) == 250).all()


def test_transparent_parts_are_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    save(tmp_path / "rgba" / "a.png", pixels)
    out = only(tmp_path / "rgba")
    assert (out[:2] == 0).all()
    assert (out[2:] == 255).all()

    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 0, 0, 0])
    save(tmp_path / "palette" / "a.png", palette, transparency=1)
    np.testing.assert_array_equal(only(tmp_path / "palette")[0], [[10, 20, 30], [255] * 3])


@pytest.mark.parametrize("mode", ["1", "CMYK", "LA", "HSV", "YCbCr"])
def test_other_colour_modes_are_converted(tmp_path, mode):
    suffix = {"1": "png", "LA": "png"}.get(mode, "tif" if mode != "HSV" else "png")
    white = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    if mode == "HSV":
        white = white.convert("RGB")
    save(tmp_path / "x" / f"a.{suffix}", white)
    assert (only(tmp_path / "x") > 250).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """Against the definition: where row 0 and column 0 of the stored image are to be seen."""
    seen = np.zeros((8, 12, 3), np.uint8)
    seen[:4, :6], seen[:4, 6:], seen[4:, :6] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: seen.transpose(1, 0, 2)[::-1],
        7: seen.transpose(1, 0, 2)[::-1, ::-1],
        8: seen.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("png", "tif", "grey"):
        pixels = np.ascontiguousarray(stored[..., 0] if name == "grey" else stored)
        path = tmp_path / name / f"a.{'png' if name == 'png' else 'tif'}"
        save(path, pixels, exif=exif)
        expected = seen[..., :1] if name == "grey" else seen
        channels = expected.shape[-1]
        np.testing.assert_array_equal(only(path.parent, channels=channels), expected)


def test_a_damaged_exif_block_is_passed_over(tmp_path):
    save(tmp_path / "x" / "a.jpg", picture(1), exif=b"Exif\x00\x00garbage garbage")
    assert only(tmp_path / "x").shape == (16, 16, 3)


def test_the_centre_square_is_cut_out_and_resized(tmp_path):
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = 200
    save(tmp_path / "x" / "a.png", pixels)
    assert (only(tmp_path / "x", image_size=8) == 200).all()
    small = only(tmp_path / "x", image_size=4)
    assert small.shape == (4, 4, 3)
    assert (small == 200).all()
    assert only(tmp_path / "x", image_size=32).shape == (32, 32, 3)


def test_reducing_averages_instead_of_picking(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    save(tmp_path / "x" / "a.png", stripes)
    inner = only(tmp_path / "x", image_size=8)[:, 1:-1]
    assert (np.abs(inner.astype(int) - 127) < 6).all()


def test_large_jpegs_are_reduced_to_nearly_the_same_as_large_pngs(tmp_path):
    """The JPEG decoder's own halving stays above twice the side wanted."""
    side = 512
    wave = 127 + 100 * np.sin(np.arange(side) / 40)[:, None] * np.cos(np.arange(side) / 30)
    pixels = np.repeat(wave[..., None], 3, -1).astype(np.uint8)
    save(tmp_path / "jpg" / "a.jpg", pixels, quality=95)
    save(tmp_path / "png" / "a.png", pixels)
    jpg, png = (only(tmp_path / k, image_size=32).astype(int) for k in ("jpg", "png"))
    assert np.abs(jpg - png).max() < 4


# Files that Pillow does not write, or reads without all that they say.


def chunk(kind: bytes, content: bytes) -> bytes:
    sealed = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + sealed


def png(depth: int, colours: int, row: bytes, width: int, transparent: bytes) -> bytes:
    """A PNG of one row, with a transparent colour; `colours` 0 is grey, 2 RGB, 3 a palette."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colours, 0, 0, 0)
    palette = chunk(b"PLTE", bytes([0, 0, 0, 10, 20, 30, 0, 0, 0])) if colours == 3 else b""
    body = chunk(b"IHDR", header) + palette + chunk(b"tRNS", transparent)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + body + pixels + chunk(b"IEND", b"")


GREY = {
    "1 bit, black": (1, bytes([0b01000000]), 2, 0, [255, 255]),
    "1 bit, white": (1, bytes([0b10100000]), 3, 1, [255, 0, 255]),
    "2 bits": (2, bytes([0b00011011]), 4, 1, [0, 255, 170, 255]),
    "4 bits": (4, bytes([0x0F, 0x37]), 4, 3, [0, 255, 255, 119]),
    "4 bits, what is above them does not count": (4, bytes([0x37]), 2, 0x153, [255, 119]),
    "8 bits": (8, bytes([0, 3, 7]), 3, 3, [0, 255, 7]),
    "16 bits, black": (16, struct.pack(">2H", 0, 40000), 2, 0, [255, 156]),
    "16 bits, equal high bytes": (
        16,
        struct.pack(">3H", 512, 513, 514),
        3,
        513,
        [2, 255, 2],
    ),
}


@pytest.mark.parametrize("depth, row, width, colour, expected", GREY.values(), ids=GREY)
def test_the_transparent_grey_of_a_png_is_white(depth, row, width, colour, expected):
    content = png(depth, 0, row, width, struct.pack(">H", colour))
    assert decode(content, ImageSpec(0, 1))[0, :, 0].tolist() == expected
    assert decode(content, ImageSpec(0, 3))[0].tolist() == [[x] * 3 for x in expected]


def test_the_transparent_colour_of_an_rgb_png_is_white(tmp_path):
    white = [255, 255, 255]
    eight = png(8, 2, bytes([0, 2, 3, 1, 2, 3]), 2, struct.pack(">3H", 1, 2, 3))
    assert decode(eight, ImageSpec(0, 3))[0].tolist() == [[0, 2, 3], white]
    values = struct.pack(">9H", 256, 512, 768, 256, 512, 769, 300, 512, 769)
    sixteen = png(16, 2, values, 3, struct.pack(">3H", 256, 512, 769))
    (tmp_path / "a.png").write_bytes(sixteen)
    for source in (sixteen, tmp_path / "a.png"):
        assert decode(source, ImageSpec(0, 3))[0].tolist() == [[1, 2, 3], white, [1, 2, 3]]
    assert decode(sixteen, ImageSpec(0, 1))[0, :, 0].tolist() == [2, 255, 2]


def test_each_colour_of_a_palette_has_its_own_transparency():
    content = png(2, 3, bytes([0b00011000]), 3, bytes([255, 0, 128]))
    expected = [[0] * 3, [255] * 3, [127] * 3]
    assert decode(content, ImageSpec(0, 3))[0].tolist() == expected


# At the edges of steps: half a step above a level (128.5 of 257) is the next level's.
EDGES = {0: 0, 128: 0, 129: 1, 255: 1, 256: 1, 385: 1, 386: 2, 32767: 127, 32768: 128}
EDGES |= {65278: 254, 65279: 254, 65406: 254, 65407: 255, 65535: 255}
EDGE_VALUES = np.array(list(EDGES), ">u2")


@pytest.mark.parametrize("colours, bands", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_rounded_in_every_kind_of_png(colours, bands):
    """Grey, RGB, grey with alpha and RGB with alpha: one rule."""
    values = np.repeat(EDGE_VALUES[:, None], bands, axis=1)
    if bands in (2, 4):
        values[:, -1] = 65535
    header = struct.pack(">IIBBBBB", len(values), 1, 16, colours, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes()))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")
    for channels in (1, 3):
        made = decode(content, ImageSpec(0, channels))
        assert made[0].tolist() == [[level] * channels for level in EDGES.values()]


def test_alpha_of_sixteen_bits_is_rounded():
    for colours, bands in ((4, 1), (6, 3)):
        for alpha, level in ((128, 255), (129, 254), (65535 - 128, 0), (65535 - 129, 1)):
            row = struct.pack(f">{bands + 1}H", *[0] * bands, alpha)
            content = png(16, colours, row, 1, b"")
            assert decode(content, ImageSpec(0, 1)).item() == level


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", [1, 2])
def test_sixteen_bits_are_rounded_in_colour_tiffs(order, planes):
    values = np.repeat(EDGE_VALUES[:, None], 3, axis=1).astype(f"{order}u2")
    row = (values if planes == 1 else values.T.copy()).tobytes()
    made = decode(colour_tiff(row, len(values), planes, order), ImageSpec(0, 3))
    assert made[0].tolist() == [[level] * 3 for level in EDGES.values()]


def test_colours_of_sixteen_bits_are_known_by_the_header():
    """Of all other images the decoding has not changed."""
    for colours, bands in ((2, 3), (4, 2), (6, 4)):
        assert has_sixteen_bit_colours(png(16, colours, bytes(2 * bands), 1, b""))
        assert not has_sixteen_bit_colours(png(8, colours, bytes(bands), 1, b""))
    assert not has_sixteen_bit_colours(png(16, 0, bytes(2), 1, b""))
    for order, planes in (("<", 1), (">", 1), ("<", 2), (">", 2)):
        assert has_sixteen_bit_colours(colour_tiff(bytes(12), 2, planes, order))
    assert not has_sixteen_bit_colours(tiff(16, 1, bytes(4), 2, 1, "<"))
    for broken in (b"", b"x", b"II*\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
        assert not has_sixteen_bit_colours(broken)


def colour_tiff(row: bytes, width: int, planes: int, order: str) -> bytes:
    """An uncompressed TIFF of one row of RGB of 16 bits, by pixels (1) or by bands (2)."""
    start, strips = 8, 1 if planes == 1 else 3
    size = len(row) // strips
    lists = struct.pack(f"{order}3H", 16, 16, 16)
    starts = struct.pack(f"{order}{strips}I", *(start + i * size for i in range(strips)))
    sizes = struct.pack(f"{order}{strips}I", *[size] * strips)
    at = start + len(row)
    tags = [(256, 3, 1, width), (257, 3, 1, 1), (258, 3, 3, at), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, strips, at + 6 if strips > 1 else start), (277, 3, 1, 3), (278, 3, 1, 1)]
    tags += [(279, 4, strips, at + 6 + len(starts) if strips > 1 else size), (284, 3, 1, planes)]
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (
            struct.pack(f"{order}HH", value, 0)
            if kind == 3 and count == 1
            else struct.pack(f"{order}I", value)
        )
        for tag, kind, count, value in tags
    )
    place = at + len(lists + starts + sizes)
    count = struct.pack(f"{order}H", len(tags))
    return (
        head
        + struct.pack(f"{order}I", place)
        + row
        + lists
        + starts
        + sizes
        + count
        + entries
        + bytes(4)
    )


def test_sixteen_bits_with_alpha_are_laid_over_white(tmp_path):
    row = struct.pack(">4H", 40000, 65535, 0, 0)
    content = png(16, 4, row, 2, b"")
    assert decode(content, ImageSpec(0, 1))[0, :, 0].tolist() == [156, 255]


def tiff(bits: int, photometric: int, row: bytes, width: int, sample: int, order: str) -> bytes:
    """An uncompressed grey TIFF of one row."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 277: 1, 278: 1, 339: sample}
    tags = dict(sorted({**tags, 273: 8, 279: len(row)}.items()))
    entries = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()]
    count = struct.pack(f"{order}H", len(tags))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(row))
    return head + row + count + b"".join(entries) + bytes(4)


TIFFS = {
    "16 bits": ((16, 1, struct.pack("<2H", 0, 40000), 2, 1, "<"), [0, 156]),
    "16 bits, big-endian": ((16, 1, struct.pack(">2H", 0, 40000), 2, 1, ">"), [0, 156]),
    "16 bits, 0 is white": ((16, 0, struct.pack("<2H", 0, 40000), 2, 1, "<"), [255, 99]),
    "12 bits": ((12, 1, bytes([0xFF, 0xF8, 0x00]), 2, 1, "<"), [255, 128]),
    "8 bits, 0 is white": ((8, 0, bytes([0, 200]), 2, 1, "<"), [255, 55]),
}


@pytest.mark.parametrize("parts, expected", TIFFS.values(), ids=TIFFS)
def test_what_a_tiff_says_of_its_values_is_kept(parts, expected):
    assert decode(tiff(*parts), ImageSpec(0, 1))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    "bits, row, sample, word",
    [
        (16, struct.pack("<2h", 0, 200), 2, "signed"),
        (8, bytes([0, 200]), 2, "signed"),
        (32, struct.pack("<2I", 0, 200), 1, "32-bit integer"),
    ],
)
def test_values_without_a_fixed_range_are_refused_whatever_they_are(bits, row, sample, word):
    with pytest.raises(ValueError, match=f"{word} values have no fixed range"):
        decode(tiff(bits, 1, row, 2, sample, "<"), ImageSpec(0, 1))


@pytest.mark.parametrize("most, values", [(1023, ">2H"), (100, ">2B")])
def test_the_maximum_of_a_pgm_is_white(most, values):
    content = f"P5 2 1 {most}\n".encode() + struct.pack(values, 0, most)
    assert decode(content, ImageSpec(0, 1))[0, :, 0].tolist() == [0, 255]


# ------------------------------------------------------------------------------------------ frames


def frames(path, count, **options):
    """A file of pictures of one colour each, the first of them black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [Image.new("RGB", (4, 4), (90 * i,) * 3) for i in range(count)]
    made[0].save(path, save_all=count > 1, append_images=made[1:], **options)


@pytest.mark.parametrize("limit", [2048.0, 0.0], ids=["in memory", "lazy"])
def test_files_with_further_frames_are_counted(tmp_path, monkeypatch, limit):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for kind in ("gif", "webp", "png", "tiff"):
        frames(tmp_path / "set" / f"many.{kind}", 3)
        frames(tmp_path / "set" / f"one.{kind}", 1)
    for _ in range(2):  # the second time of what is remembered
        dataset = load(tmp_path / "set", in_memory_limit_mb=limit)
        assert dataset.reading.further == 4
        assert "frames    4 files have further frames; the first is used" in data.summary(dataset)
        assert dataset.take(range(8)).max() < 10
    (tmp_path / "set" / "many.gif").unlink()
    (tmp_path / "set" / "many.tiff").write_bytes(b"II*")
    (tmp_path / "set" / "many.webp").unlink()
    dataset = load(tmp_path / "set", in_memory_limit_mb=limit, on_bad_image="skip")
    assert "frames    1 file has further frames; the first is used" in data.summary(dataset)
    (tmp_path / "set" / "many.png").unlink()
    dataset = load(tmp_path / "set", in_memory_limit_mb=limit, on_bad_image="skip")
    assert not [line for line in data.summary(dataset) if line.startswith("frames")]
