"""Decoding and transforms, by value and over every operation."""

import contextlib
import io
import random
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, _RAND_TRANSFORMS, AugmentOp
from torchvision import transforms

from data.pipeline.decoding import decode, decode_bands
from data.pipeline.device import Normalize, Pixels
from data.pipeline.transforms import EvalTransform, EvalTransformOptions, TrainTransform, crop_long_side
from tests.builders import AUGMENTED, PLAIN
from utils.errors import ConfigError, DataError
from utils.preprocessing import Preprocessing


def photo(size=(96, 96)):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_decode_gives_rgb():
    image = photo()
    assert np.array_equal(np.asarray(decode(encoded(image), "a.png")), np.asarray(image))
    assert decode(encoded(image.convert("L")), "a.png").mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_fault_39_sixteen_bits_are_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = np.asarray(decode(encoded(Image.fromarray(ramp), kind), "a"))
    np.testing.assert_array_equal(pixels[..., 0], (ramp / 257).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty file"), (b"this is text", "cannot identify"), (encoded(photo(), "JPEG")[:900], "truncated")],
)
def test_fault_38_unreadable_images_are_named(data, reason):
    with pytest.raises(DataError) as caught:
        decode(data, "train/n01/x.jpg")
    assert reason in str(caught.value) and "BytesIO" not in str(caught.value) and "train/n01/x.jpg" in str(caught.value)


@pytest.mark.parametrize("damage", ["zeros", "cut and closed", "a gap"])
def test_fault_38_damage_inside_a_jpeg_is_refused_not_filled_with_grey(damage):
    """As interrupted copies leave it: Pillow reads all three, with grey or noise."""
    data = encoded(photo((300, 300)), "JPEG")
    half = len(data) // 2
    bad = {
        "zeros": data[:half] + bytes(len(data) - half),
        "cut and closed": data[:half] + b"\xff\xd9",
        "a gap": data[:half] + data[half + 4000 :],
    }[damage]
    for upright in (False, True):
        with pytest.raises(DataError, match="truncated or corrupt.*: x.jpg"):
            decode(bad, "x.jpg", upright)
    with pytest.raises(DataError, match="truncated or corrupt.*: x.jpg"):
        TrainTransform(PLAIN)(bad, "x.jpg")


def malformed_exif(orientation):
    """The image's width (tag 0x100) as text: Pillow reads it, and cannot write it."""
    tags = Image.Exif()
    tags[0x010F], tags[0x0112] = "wide", orientation
    return tags.tobytes().replace(b"\x0f\x01", b"\x00\x01").replace(b"\x01\x0f", b"\x01\x00")


def test_malformed_metadata_are_no_traceback():
    buffer = io.BytesIO()
    photo((40, 24)).save(buffer, "JPEG", exif=malformed_exif(6))
    assert decode(buffer.getvalue(), "a").size == (24, 40)
    with contextlib.suppress(DataError):
        decode(buffer.getvalue(), "a", upright=True)


def evaluating(side, **more):
    return EvalTransform(EvalTransformOptions(size=(side, side), **more))


def finished(prepared):
    """As the model gets it: float32 (3, size, size)."""
    boxes = torch.tensor([(0, *box) for box in prepared.boxes], dtype=torch.int64).view(-1, 6)
    return Normalize(Preprocessing(), torch.device("cpu"))(Pixels(torch.from_numpy(prepared.pixels)[None], boxes))[0]


def test_evaluation_resizes_by_256_over_224_and_crops():
    image = photo((120, 90))
    out = finished(evaluating(56)(encoded(image), "a"))
    resized = image.resize((64, int(64 * 120 / 90)), Image.Resampling.BICUBIC)
    expected = transforms.functional.to_tensor(np.asarray(resized)[14 : 14 + 56, 4 : 4 + 56].copy())
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert torch.equal(out, transforms.functional.normalize(expected, mean, std))  # the very bits


def test_evaluation_without_crop_squashes():
    image = photo((120, 90))
    pixels = evaluating(48, crop=False)(encoded(image), "a").pixels
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_training_without_augmentation_is_a_resize(decoder):
    data = encoded(photo())
    out = TrainTransform(replace(PLAIN, decoder=decoder))(data, "a").pixels
    expected = evaluating(32, crop=False)(data, "a").pixels
    assert abs(out.astype(int) - expected).max() <= (decoder == "auto")


def test_training_draws_from_the_global_generators_only():
    transform = TrainTransform(replace(PLAIN, auto_augment="rand-m9-mstd0.5-inc1", re_prob=1.0))

    def draw(seed):
        seed_everything(seed)
        return finished(transform(encoded(photo()), "a"))

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def seed_everything(seed):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "augmix-m5-w4-d2", "none"])
def test_policies_of_timm(policy):
    for decoder in ("auto", "pillow"):
        transform = TrainTransform(replace(PLAIN, auto_augment=policy, color_jitter=0.4, decoder=decoder))
        assert transform(encoded(photo()), "a").pixels.shape == (3, 32, 32)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ConfigError, match="AUG.AUTO_AUGMENT"):
        TrainTransform(replace(PLAIN, auto_augment="nonsense"))


@pytest.mark.parametrize("name", sorted({*_RAND_TRANSFORMS, *_RAND_INCREASING_TRANSFORMS}))
def test_every_randaugment_operation_runs_at_every_magnitude(name):
    """Guards the pair of Pillow and timm: Pillow 13 refuses the 0-bit posterize that timm asks for."""
    for magnitude in np.linspace(0, 10, 21):
        operation = AugmentOp(name, prob=1.0, magnitude=float(magnitude), hparams={"magnitude_std": 0.0})
        assert operation(photo()).size == (96, 96)


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
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    assert np.array_equal(np.asarray(decode(buffer.getvalue(), "a")), np.asarray(image.convert("RGB")))


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
    image, tags = photo((40, 24)), Image.Exif()
    tags[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=tags)
    turn = Image.Transpose
    turns = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM]
    turns += [turn.TRANSPOSE, turn.ROTATE_270, turn.TRANSVERSE, turn.ROTATE_90]
    upright = image if orientation == 1 else image.transpose(turns[orientation - 1])
    assert np.array_equal(np.asarray(decode(buffer.getvalue(), "a")), np.asarray(image))
    assert np.array_equal(np.asarray(decode(buffer.getvalue(), "a", upright=True)), np.asarray(upright))


def test_fault_41_a_decompression_bomb_is_refused_before_it_takes_memory():
    import resource

    data = encoded(Image.new("1", (20_000, 20_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="exceeds limit"):
        decode(data, "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
@pytest.mark.parametrize("crop", [True, False])
def test_fault_42_odd_sizes_are_evaluated_and_trained_on(size, crop):
    data = encoded(Image.new("RGB", size, (10, 20, 30)))
    pixels = evaluating(224, crop=crop)(data, "a").pixels
    colour = np.array([10, 20, 30])[:, None, None]
    assert pixels.shape == (3, 224, 224) and (pixels == colour).all()
    cropped = replace(PLAIN, scale=(0.08, 1.0), ratio=(0.75, 1.33), hflip=0.5)
    for decoder in ("auto", "pillow"):
        transform = TrainTransform(replace(cropped, decoder=decoder))
        for seed in range(10):
            seed_everything(seed)
            assert (transform(data, "a").pixels == colour).all()


def test_usual_images_are_not_cut():
    for size in ((500, 375), (1000, 100)):
        image = Image.new("RGB", size)
        assert crop_long_side(image) is image
    assert crop_long_side(Image.new("RGB", (1, 5000))).size == (1, 10)


@pytest.mark.parametrize(("pct", "resized"), [(1.0, 56), (0.9, 62), (0.875, 64)])
def test_evaluation_resizes_by_the_crop_percentage(pct, resized):
    image = photo((120, 90))
    pixels = evaluating(56, crop_pct=pct)(encoded(image), "a").pixels
    whole = np.asarray(image.resize((resized, int(resized * 120 / 90)), Image.Resampling.BICUBIC))
    top, left = round((whole.shape[0] - 56) / 2), round((resized - 56) / 2)
    assert np.array_equal(pixels.transpose(1, 2, 0), whole[top : top + 56, left : left + 56])


@pytest.mark.parametrize("crop", [True, False])
def test_images_of_two_sides(crop):
    data = encoded(photo((120, 90)))
    assert EvalTransform(EvalTransformOptions(size=(40, 56), crop=crop))(data, "a").pixels.shape == (3, 40, 56)
    for decoder in ("auto", "pillow"):
        prepared = TrainTransform(replace(AUGMENTED, size=(40, 56), re_prob=1.0, decoder=decoder))(data, "a")
        assert prepared.pixels.shape == (3, 40, 56)
        assert all(box.top + box.height <= 40 and box.left + box.width <= 56 for box in prepared.boxes)


@pytest.mark.parametrize("name", ["hamming", "lanczos", "bilinear", "random"])
def test_interpolations_of_the_original(name):
    data = encoded(photo())
    wanted = "bilinear" if name == "random" else name  # random is for training only
    expected = photo().resize((32, 32), getattr(Image.Resampling, wanted.upper()))
    pixels = evaluating(32, crop=False, interpolation=name)(data, "a").pixels
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(expected))
    trained = TrainTransform(replace(PLAIN, interpolation=name))(data, "a").pixels
    if name in ("hamming", "lanczos"):
        assert np.array_equal(trained, pixels)


def test_grey_images_keep_their_values_for_a_model_of_one_channel():
    ramp = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32)
    grey = encoded(Image.fromarray(ramp))
    deep = encoded(Image.fromarray(ramp.astype(np.uint16) * 257))
    for data in (grey, deep):
        for decoder in ("auto", "pillow"):
            one = TrainTransform(replace(PLAIN, channels=1, decoder=decoder))(data, "a").pixels
            assert one.shape == (1, 32, 32) and np.array_equal(one[0], ramp)
        pixels = EvalTransform(EvalTransformOptions(size=(32, 32), crop=False, channels=1))(data, "a").pixels
        assert np.array_equal(pixels[0], ramp)
    augmented = TrainTransform(replace(AUGMENTED, channels=1))(grey, "a")
    assert augmented.pixels.shape == (1, 32, 32)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("channels", [2, 5, 12])
def test_tiffs_of_many_bands_are_read_as_they_are(dtype, planar, channels):
    bands = np.random.default_rng(0).integers(0, 256, (32, 32, channels)).astype(dtype)
    stored = bands * np.array(257 if dtype == np.uint16 else 1, dtype)
    buffer = io.BytesIO()
    if planar:
        tifffile.imwrite(buffer, np.moveaxis(stored, -1, 0), photometric="minisblack", planarconfig="separate")
    else:
        tifffile.imwrite(buffer, stored, photometric="minisblack", planarconfig="contig")
    data = buffer.getvalue()
    options = replace(PLAIN, channels=channels)
    assert np.array_equal(TrainTransform(options)(data, "a").pixels, np.moveaxis(bands, -1, 0))
    mirrored = TrainTransform(replace(options, hflip=1.0))(data, "a").pixels
    assert np.array_equal(mirrored, np.moveaxis(bands[:, ::-1], -1, 0))
    pixels = EvalTransform(EvalTransformOptions(size=(32, 32), crop=False, channels=channels))(data, "a").pixels
    assert np.array_equal(pixels, np.moveaxis(bands, -1, 0))
    with pytest.raises(DataError, match=f"an image of {channels} channels: x.tif: IN_CHANS is 4"):
        TrainTransform(replace(PLAIN, channels=4))(data, "x.tif") if channels > 2 else decode_bands(data, "x.tif", 4)


def test_alpha_is_a_channel_where_the_model_has_four():
    image = photo((32, 32)).convert("RGBA")
    image.putalpha(77)
    pixels = TrainTransform(replace(PLAIN, channels=4))(encoded(image), "a").pixels
    assert np.array_equal(pixels, np.moveaxis(np.asarray(image), -1, 0)) and (pixels[3] == 77).all()
    three = photo((32, 32))
    repeated = TrainTransform(replace(PLAIN, channels=4))(encoded(three), "a").pixels
    assert np.array_equal(repeated, np.moveaxis(np.asarray(three), -1, 0)[[0, 1, 2, 0]])


def test_colour_augmentation_of_other_channels_is_refused():
    with pytest.raises(ConfigError, match="colour augmentation of 5 channels: AUG.AUTO_AUGMENT"):
        TrainTransform(replace(AUGMENTED, channels=5))
