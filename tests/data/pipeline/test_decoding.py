"""Decoding: every kind of image by value, and every damage by name."""

import importlib.util
import io
import re

import numpy as np
import pytest
import tifffile
from PIL import Image, WebPImagePlugin
from sklearn.datasets import load_sample_images

from data.pipeline.decoding import decode, decode_bands, decode_jpeg, jpeg_size
from tests.tools.errors import raises
from tests.tools.memory import memory_bounded
from utils.errors import DataError

PHOTO = Image.fromarray(load_sample_images().images[1])


def noise(size=(96, 96)):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(channels, dtype=np.uint8, planar=False):
    """A TIFF of 32 x 32 pixels, and its bands in 8 bits (32, 32, channels)."""
    bands = np.random.default_rng(0).integers(0, 256, (32, 32, channels)).astype(dtype)
    stored = bands * np.array(257 if dtype == np.uint16 else 1, dtype)
    buffer = io.BytesIO()
    if planar:
        tifffile.imwrite(buffer, np.moveaxis(stored, -1, 0), photometric="minisblack", planarconfig="separate")
    else:
        tifffile.imwrite(buffer, stored, photometric="minisblack", planarconfig="contig")
    return buffer.getvalue(), bands


def test_decode_gives_rgb():
    image = noise()
    assert np.array_equal(np.asarray(decode(encoded(image), "a.png")), np.asarray(image))
    assert decode(encoded(image.convert("L")), "a.png").mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_fault_39_sixteen_bits_are_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = np.asarray(decode(encoded(Image.fromarray(ramp), kind), "a"))
    np.testing.assert_array_equal(pixels[..., 0], (ramp / 257).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "pixels"),
    [
        (np.array([[0, 0.25, 1]], np.float32), [0, 64, 255]),
        (np.array([[0, 0, 0]], np.float32), [0, 0, 0]),
        (np.array([[0, 127.6, 255]], np.float32), [0, 127, 255]),
        (np.array([[0, 257, 65535]], np.float32), [0, 1, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[1, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 257, 32767]], np.int16), [0, 1, 127]),
        (np.array([[0, 100, 255]], np.uint16), [0, 0, 1]),
        (np.array([[-1, 100, 255]], np.int32), None),
        (np.array([[0, 100, 65536]], np.int32), None),
        (np.array([[0, 0.5, np.nan]], np.float32), None),
        (np.array([[0, 0.5, np.inf]], np.float32), None),
        (np.array([[-0.1, 0.5, 1]], np.float32), None),
        (np.array([[0, 0.5, 1.02]], np.float32), None),  # 0 to 1, interpolated, or almost black
        (np.array([[0, 100, 256]], np.float32), None),
    ],
)
def test_fault_39_wide_values_are_scaled_by_what_they_tell(values, pixels):
    data = encoded(Image.fromarray(values), "TIFF") if values.dtype != np.int16 else tiff_of(values)
    if pixels is None:
        with raises(DataError, "x.tif", "scale"):
            decode(data, "x.tif")
    else:
        assert np.asarray(decode(data, "x.tif"))[0, :, 0].tolist() == pixels


def tiff_of(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def test_fault_39_a_dark_pgm_of_sixteen_bits_stays_dark():
    data = b"P5 3 1 65535\n" + np.array([0, 100, 255], ">u2").tobytes()
    assert np.asarray(decode(data, "a.pgm"))[0, :, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"this is text", "unknown format"), (encoded(noise(), "JPEG")[:900], "truncated")],
)
def test_fault_38_unreadable_images_are_named(data, reason):
    with raises(DataError, "train/n01/x.jpg", reason) as caught:
        decode(data, "train/n01/x.jpg")
    assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("damage", ["zeros", "cut and closed", "a gap"])
def test_fault_38_damage_inside_a_jpeg_is_refused_not_filled_with_grey(damage):
    """As interrupted copies leave it: Pillow reads all three, with grey or noise."""
    data = encoded(noise((300, 300)), "JPEG")
    half = len(data) // 2
    bad = {
        "zeros": data[:half] + bytes(len(data) - half),
        "cut and closed": data[:half] + b"\xff\xd9",
        "a gap": data[:half] + data[half + 4000 :],
    }[damage]
    for upright in (False, True):
        with raises(DataError, "x.jpg", "truncated or corrupt"):
            decode(bad, "x.jpg", upright)
    with raises(DataError, "x.jpg", "truncated or corrupt"):
        decode_jpeg(bad, "x.jpg", *jpeg_size(bad), reduce=2)


def malformed_exif(orientation):
    """The image's width (tag 0x100) as text: Pillow reads it, and cannot write it."""
    tags = Image.Exif()
    tags[0x010F], tags[0x0112] = "wide", orientation
    return tags.tobytes().replace(b"\x0f\x01", b"\x00\x01").replace(b"\x01\x0f", b"\x01\x00")


def test_malformed_metadata_are_no_traceback():
    image = noise((40, 24))
    for kind in ("JPEG", "PNG"):
        data = encoded(image, kind, exif=malformed_exif(6))
        plain = decode(data, "a")
        assert plain.size == (24, 40)
        turned = plain.transpose(Image.Transpose.ROTATE_270)
        assert np.array_equal(np.asarray(decode(data, "a", upright=True)), np.asarray(turned))


def rational_maker(orientation):
    """The maker (tag 0x10F), a text, as a fraction."""
    tags = Image.Exif()
    tags[0x0112], tags[0x011A] = orientation, 72.0
    return tags.tobytes().replace(b"\x1a\x01", b"\x0f\x01").replace(b"\x01\x1a", b"\x01\x0f")


@pytest.mark.parametrize("damage", ["type", "length", "noise"])
def test_fault_40_broken_exif_never_spoils_the_pixels(damage):
    image, exif = noise((40, 24)), rational_maker(6)
    if damage == "length":
        exif = exif[: len(exif) // 2]
    elif damage == "noise":
        exif = exif[:10] + b"\xff" * (len(exif) - 10)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        plain = np.asarray(decode(data, "a"))
        found = np.asarray(decode(data, "a", upright=True))
        assert np.array_equal(found, np.rot90(plain, -1) if damage == "type" else plain), kind


RAMP = np.linspace(0, 255, 24).astype(np.uint8).reshape(4, 6)
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)


def with_alpha(alpha=128):
    return Image.fromarray(np.dstack([COLOURS, np.full_like(RAMP, alpha)]))


def animated():
    buffer = io.BytesIO()
    frames = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (40, 200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def pages():
    buffer = io.BytesIO()
    first, second = Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)
    first.save(buffer, "TIFF", save_all=True, append_images=[second])
    return buffer.getvalue()


GREY = np.stack([RAMP] * 3, -1)
GOLDEN = {
    "PNG named .JPEG": (encoded(Image.fromarray(COLOURS)), COLOURS, 0),
    "RGBA: colours as they are": (encoded(with_alpha()), COLOURS, 0),
    "LA: grey as it is": (encoded(Image.fromarray(RAMP).convert("LA")), GREY, 0),
    "palette": (encoded(Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE)), GREY, 3),
    "1 bit": (encoded(Image.fromarray(RAMP > 127)), np.where(GREY > 127, 255, 0), 0),
    "16 bits": (encoded(Image.fromarray(RAMP.astype(np.uint16) * 257)), GREY, 0),
    "CMYK": (encoded(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS, 1),
    "animated GIF: first frame": (animated(), np.full((4, 6, 3), 40), 0),
    "TIFF of pages: first page": (pages(), COLOURS, 0),
}


@pytest.mark.parametrize(("data", "pixels", "tolerance"), GOLDEN.values(), ids=GOLDEN)
def test_fault_39_every_kind_of_image_is_read(data, pixels, tolerance):
    found = np.asarray(decode(data, "x.JPEG")).astype(int)
    assert found.shape == (4, 6, 3) and abs(found - pixels).max() <= tolerance


def test_fault_39_palette_with_transparency_keeps_its_colours():
    image = Image.fromarray(GREY).convert("P", palette=Image.Palette.ADAPTIVE)
    data = encoded(image, transparency=0)
    assert np.array_equal(np.asarray(decode(data, "a")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_fault_39_jpegs_of_four_inks(mode):
    """Adobe's files hold the inks inverted; YCCK is what Adobe's marker says when its transform is 2."""
    flat = Image.new("RGB", (64, 64), (200, 30, 90))
    data = encoded(flat.convert("CMYK"), "JPEG")
    if mode == "YCCK":
        at = data.index(b"Adobe") + 11
        data = data[:at] + b"\x02" + data[at + 1 :]
    found = np.asarray(decode(data, "a.jpg"))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(found, expected)
    if mode == "CMYK":
        assert abs(found.astype(int) - np.array([200, 30, 90])).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fault_40_orientation_is_ignored_or_applied(orientation):
    image, tags = noise((40, 24)), Image.Exif()
    tags[0x0112] = orientation
    data = encoded(image, exif=tags)
    turn = Image.Transpose
    turns = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM]
    turns += [turn.TRANSPOSE, turn.ROTATE_270, turn.TRANSVERSE, turn.ROTATE_90]
    upright = image if orientation == 1 else image.transpose(turns[orientation - 1])
    assert np.array_equal(np.asarray(decode(data, "a")), np.asarray(image))
    assert np.array_equal(np.asarray(decode(data, "a", upright=True)), np.asarray(upright))


def test_fault_41_a_decompression_bomb_is_refused_before_it_takes_memory():
    data = encoded(Image.new("1", (20_000, 20_000)))
    with memory_bounded(20), raises(DataError, "bomb.png", "exceeds limit"):
        decode(data, "bomb.png")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}])
def test_decoded_pixels_are_pillows_own(mode, options):
    for size in ((333, 257), (16, 16), (1, 1)):
        data = encoded(PHOTO.crop((0, 0, *size)).convert(mode), "JPEG", quality=95, **options)
        assert jpeg_size(data) == size[::-1]
        pixels = decode_jpeg(data, "a", size[1], size[0])
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_other_images_and_corrupt_ones_are_left_to_pillow():
    crop = PHOTO.crop((0, 0, 64, 48))
    assert jpeg_size(encoded(crop)) is None and jpeg_size(b"\xff\xd8 no more") is None and jpeg_size(b"") is None
    assert jpeg_size(encoded(crop.convert("CMYK"), "JPEG")) is None
    with raises(DataError, "x.jpg"):
        decode_jpeg(encoded(crop, "JPEG", quality=95)[:-600], "x.jpg", 48, 64)


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
def test_reduced_decoding_rounds_the_sides_up(reduce):
    data = encoded(PHOTO.crop((0, 0, 99, 50)), "JPEG", quality=95)
    pixels = decode_jpeg(data, "a", 50, 99, reduce)
    assert pixels.shape == (-(-50 // reduce), -(-99 // reduce), 3)
    assert abs(pixels.mean() - np.asarray(PHOTO.crop((0, 0, 99, 50))).mean()) < 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("channels", [2, 5, 12])
def test_tiffs_of_many_bands_are_decoded_as_they_are(dtype, planar, channels):
    data, bands = tiff(channels, dtype, planar)
    assert np.array_equal(decode_bands(data, "a", channels), bands)
    with raises(DataError, "x.tif", f"{channels} channels", "IN_CHANS is 4"):
        decode_bands(data, "x.tif", 4)


def test_other_types_of_values_are_refused():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((4, 4, 5), np.float32), photometric="minisblack", planarconfig="contig")
    with raises(DataError, "x.tif", "float32"):
        decode_bands(buffer.getvalue(), "x.tif", 5)
    with raises(DataError, "x.tif"):
        decode_bands(buffer.getvalue()[:60], "x.tif", 5)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 3), (0, 0)])
def test_fault_39_a_tiff_that_is_no_plane_of_pixels_is_refused(shape):
    photometric = "rgb" if shape[-1] == 3 else "minisblack"
    data = tiff_of(np.zeros(shape, np.uint8), photometric=photometric, volumetric=len(shape) > 2)
    for channels in (4, 8):
        with raises(DataError, "x.tif", str(shape)):
            decode_bands(data, "x.tif", channels)


def test_fault_41_a_tiff_of_many_bands_is_refused_before_it_takes_memory():
    data = bytearray(tiff(5)[0])
    for tag in (256, 257):  # width, height
        at = re.search(tag.to_bytes(2, "little") + b"[\3\4]\0\1\0\0\0", data).end()
        data[at : at + 4] = (60_000).to_bytes(4, "little")
    with memory_bounded(20), raises(DataError, "x.tif", "exceed"):
        decode_bands(bytes(data), "x.tif", 5)


def test_a_missing_decoder_is_named(monkeypatch):
    data = encoded(noise((8, 8)).convert("RGBA"), "TIFF", compression="tiff_lzw")
    if importlib.util.find_spec("imagecodecs"):
        assert decode_bands(data, "x.tif", 4).shape == (8, 8, 4)
    else:
        with raises(DataError, "x.tif", "pip install imagecodecs"):
            decode_bands(data, "x.tif", 4)
    data = encoded(noise((8, 8)), "WEBP")
    monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)  # as Pillow was built
    with raises(DataError, "x.webp", "WEBP support"):
        decode(data, "x.webp")


def test_colour_images_are_repeated_to_more_channels():
    pixels = np.asarray(noise((8, 8)))
    assert np.array_equal(decode_bands(encoded(noise((8, 8))), "a", 5), pixels[..., [0, 1, 2, 0, 1]])
    alpha = noise((8, 8)).convert("RGBA")
    alpha.putalpha(77)
    assert np.array_equal(decode_bands(encoded(alpha), "a", 4), np.asarray(alpha))
    assert np.array_equal(decode_bands(encoded(alpha), "a", 5), pixels[..., [0, 1, 2, 0, 1]])
