"""Transforms: evaluation by value, training beside timm's own pipeline."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, _RAND_TRANSFORMS, AugmentOp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from data.pipeline.array_ops import OPERATIONS
from data.pipeline.device import Normalize
from data.pipeline.sample import stack
from data.pipeline.transforms import (
    EvalTransform,
    EvalTransformOptions,
    TrainTransform,
    TrainTransformOptions,
    crop_long_side,
    resize,
    visible_box,
)
from data.sources.base import Record
from tests.data.pipeline.test_decoding import encoded, noise, tiff
from tests.tools.builders import AUGMENTED, CPU, PLAIN
from tests.tools.errors import raises
from utils.errors import ConfigError, DataError
from utils.preprocessing import Preprocessing

RECIPE = TrainTransformOptions()  # the paper's
PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]


def seed_everything(seed):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)


def evaluating(side, **more):
    return EvalTransform(EvalTransformOptions(size=(side, side), **more))


def finished(prepared):
    """As the model gets it: float32 (3, size, size)."""
    return Normalize(Preprocessing(), CPU)(stack([prepared]))[0]


def test_evaluation_resizes_by_256_over_224_and_crops():
    image = noise((120, 90))
    out = finished(evaluating(56)(Record(encoded(image), 0, "a")))
    resized = image.resize((64, int(64 * 120 / 90)), Image.Resampling.BICUBIC)
    expected = transforms.functional.to_tensor(np.asarray(resized)[14 : 14 + 56, 4 : 4 + 56].copy())
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert torch.equal(out, transforms.functional.normalize(expected, mean, std))  # the very bits


def test_evaluation_without_crop_squashes():
    image = noise((120, 90))
    pixels = evaluating(48, crop=False)(Record(encoded(image), 0, "a")).image
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_training_without_augmentation_is_a_resize(decoder):
    data = encoded(noise())
    out = TrainTransform(replace(PLAIN, decoder=decoder))(Record(data, 0, "a")).image
    expected = evaluating(32, crop=False)(Record(data, 0, "a")).image
    assert abs(out.astype(int) - expected).max() <= (decoder == "auto")


def test_training_draws_from_the_global_generators_only():
    transform = TrainTransform(replace(PLAIN, auto_augment="rand-m9-mstd0.5-inc1", re_prob=1.0))

    def draw(seed):
        seed_everything(seed)
        return finished(transform(Record(encoded(noise()), 0, "a")))

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "augmix-m5-w4-d2", "none"])
def test_policies_of_timm(policy):
    for decoder in ("auto", "pillow"):
        transform = TrainTransform(replace(PLAIN, auto_augment=policy, color_jitter=0.4, decoder=decoder))
        assert transform(Record(encoded(noise()), 0, "a")).image.shape == (3, 32, 32)


def test_an_unknown_policy_is_refused():
    with raises(ConfigError, "AUG.AUTO_AUGMENT", "'nonsense'"):
        TrainTransform(replace(PLAIN, auto_augment="nonsense"))


@pytest.mark.parametrize("name", sorted({*_RAND_TRANSFORMS, *_RAND_INCREASING_TRANSFORMS}))
def test_every_randaugment_operation_runs_at_every_magnitude(name):
    """Guards the pair of Pillow and timm: Pillow 13 refuses the 0-bit posterize that timm asks for."""
    for magnitude in np.linspace(0, 10, 21):
        operation = AugmentOp(name, prob=1.0, magnitude=float(magnitude), hparams={"magnitude_std": 0.0})
        assert operation(noise()).size == (96, 96)


class Draws:
    """Records what timm draws: crops, and the operations of RandAugment, which it replaces by nothing."""

    def __init__(self, monkeypatch):
        self.seen = []
        original = RandomResizedCropAndInterpolation.get_params

        def get_params(image, scale, ratio):
            self.seen.append(original(image, scale, ratio))
            return self.seen[-1]

        monkeypatch.setattr(RandomResizedCropAndInterpolation, "get_params", staticmethod(get_params))

    def record(self, name):
        def drawn(image, *arguments, **_):
            self.seen.append((name, *arguments))
            return image

        return drawn


@pytest.mark.seconds
def test_1500_draws_equal_those_of_timms_own_pipeline(monkeypatch):
    """Crops, mirroring, operations and their magnitudes, one by one and so in distribution."""
    ramp = Image.fromarray(np.tile(np.arange(250, dtype=np.uint8)[None, :, None], (188, 1, 3)))
    data, draws = encoded(ramp, "JPEG", quality=95), Draws(monkeypatch)
    policy = {"interpolation": RECIPE.interpolation, "auto_augment": RECIPE.auto_augment}
    timms = transforms.Compose(create_transform(8, is_training=True, **policy, re_prob=0.0).transforms[:3])
    for operation in timms.transforms[2].ops:
        operation.aug_fn = draws.record(operation.name)
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, draws.record(name))
    ours = TrainTransform(replace(RECIPE, size=(8, 8)))
    counts = {}
    for number in range(1500):
        draws.seen.clear()
        seed_everything(number)
        row = np.asarray(timms(ramp))[0, :, 0]
        expected = [*draws.seen, row[0] > row[-1]]  # mirrored, the ramp falls
        draws.seen.clear()
        seed_everything(number)
        row = ours(Record(data, 0, "a.jpg")).image[0, 0]
        assert [*draws.seen, row[0] > row[-1]] == expected
        for name, *_ in expected[1:-1]:
            counts[name] = counts.get(name, 0) + 1
    assert len(counts) == 15 and min(counts.values()) > 70  # each is drawn 100 times on average


@pytest.mark.seconds
@pytest.mark.parametrize("count", [1, 3])
def test_erased_boxes_are_those_of_timm(count):
    """On a white image all that is left of timm's pipeline are its black boxes."""
    white = Image.new("RGB", (40, 40), "white")
    plain = {"auto_augment": None, "color_jitter": 0.0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    erasing = {"re_prob": 0.5, "re_mode": "const", "re_count": count}
    timms = create_transform(32, is_training=True, interpolation="bicubic", **plain, **erasing)
    options = replace(RECIPE, size=(32, 32), auto_augment="none", color_jitter=0.0, re_prob=0.5, re_count=count)
    transform, data = TrainTransform(options), encoded(white)
    erased = 0
    for number in range(300):
        seed_everything(number)
        expected = timms(white)
        seed_everything(number)
        left, boxes = torch.ones(3, 32, 32), transform(Record(data, 0, "a.png")).erased
        for box in boxes:
            left[:, box.top : box.top + box.height, box.left : box.left + box.width] = 0
        assert torch.equal(left, expected)
        erased += bool(boxes)
    assert 120 < erased < 180


@pytest.mark.seconds
def test_whole_samples_are_within_a_level_of_pillows():
    """Mean absolute difference of pixels over 300 samples of the recipe: 0.3 of 255 levels."""
    fast, slow = (TrainTransform(replace(RECIPE, decoder=decoder)) for decoder in ("auto", "pillow"))
    photos = [encoded(photo.crop((60, 20, 560, 395)), "JPEG", quality=95) for photo in PHOTOS]
    means = []
    for number in range(300):
        samples = []
        for transform in (fast, slow):
            seed_everything(number)
            samples.append(transform(Record(photos[number % 2], 0, "a.jpg")))
        assert samples[0].erased == samples[1].erased
        means.append(distance(samples[0].image, samples[1].image).mean())
    assert 0 < np.mean(means) < 0.5 and np.median(means) < 0.01, (np.mean(means), np.median(means), max(means))


def distance(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("box", [(0, 0, 640, 427), (100, 50, 130, 90), (10, 10, 500, 60), (3, 3, 4, 4)])
def test_resizing_is_within_a_level_of_pillows(mode, box):
    crop = PHOTOS[0].crop(box)
    expected = crop.resize((224, 224), getattr(Image.Resampling, mode.upper()))
    apart = distance(resize(np.asarray(crop), (224, 224), mode), expected)
    assert apart.max() <= 1 and apart.mean() < 0.02


def test_large_crops_are_decoded_smaller():
    """A photograph of 2560 x 1708: a crop that holds enough pixels even at half the sides is not decoded in full."""
    large = encoded(PHOTOS[0].resize((2560, 1708), Image.Resampling.BICUBIC), "JPEG", quality=95)
    plain = replace(RECIPE, auto_augment="none", color_jitter=0.0, scale=(0.5, 1.0))
    fast, slow = (TrainTransform(replace(plain, decoder=decoder)) for decoder in ("auto", "pillow"))
    means = []
    for number in range(10):
        samples = []
        for transform in (fast, slow):
            seed_everything(number)
            samples.append(transform(Record(large, 0, "a.jpg")).image)
        means.append(distance(*samples).mean())
    assert 0.05 < np.mean(means) < 1.5, means  # above 0: it is another way


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_fault_38_corrupt_jpegs_are_refused_in_training(decoder):
    data = encoded(noise((300, 300)), "JPEG")
    bad = data[: len(data) // 2] + b"\xff\xd9"
    with raises(DataError, "x.jpg", "truncated or corrupt"):
        TrainTransform(replace(PLAIN, decoder=decoder))(Record(bad, 0, "x.jpg"))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
@pytest.mark.parametrize("crop", [True, False])
def test_fault_42_odd_sizes_are_evaluated_and_trained_on(size, crop):
    data = encoded(Image.new("RGB", size, (10, 20, 30)))
    pixels = evaluating(224, crop=crop)(Record(data, 0, "a")).image
    colour = np.array([10, 20, 30])[:, None, None]
    assert pixels.shape == (3, 224, 224) and (pixels == colour).all()
    cropped = replace(PLAIN, scale=(0.08, 1.0), ratio=(0.75, 1.33), hflip=0.5)
    for decoder in ("auto", "pillow"):
        transform = TrainTransform(replace(cropped, decoder=decoder))
        for seed in range(10):
            seed_everything(seed)
            assert (transform(Record(data, 0, "a")).image == colour).all()


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (60, 2400)])
@pytest.mark.parametrize("options", [{}, {"size": (64, 96)}, {"crop_pct": 1.0}, {"crop": False}], ids=str)
def test_the_visible_box_is_what_evaluation_keeps(size, options):
    """Of an image whose colours are its coordinates."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([255 * columns / width, 255 * rows / height, 0 * rows], axis=2).astype(np.uint8)
    chosen = EvalTransformOptions(**{"size": (64, 64), **options})
    left, top, right, bottom = visible_box(size, chosen)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    across, down, _ = EvalTransform(chosen)(Record(encoded(Image.fromarray(pixels)), 0, "a")).image.astype(float) / 255
    found = [across[0, 0] * width, down[0, 0] * height, across[-1, -1] * width, down[-1, -1] * height]
    pixel = max((right - left) / chosen.size[1], (bottom - top) / chosen.size[0])
    assert np.abs(np.array(found) - (left, top, right, bottom)).max() < 1.5 * pixel + max(size) / 255


def test_usual_images_are_not_cut():
    for size in ((500, 375), (1000, 100)):
        image = Image.new("RGB", size)
        assert crop_long_side(image) is image
    assert crop_long_side(Image.new("RGB", (1, 5000))).size == (1, 10)


@pytest.mark.parametrize(("pct", "resized"), [(1.0, 56), (0.9, 62), (0.875, 64)])
def test_evaluation_resizes_by_the_crop_percentage(pct, resized):
    image = noise((120, 90))
    pixels = evaluating(56, crop_pct=pct)(Record(encoded(image), 0, "a")).image
    whole = np.asarray(image.resize((resized, int(resized * 120 / 90)), Image.Resampling.BICUBIC))
    top, left = round((whole.shape[0] - 56) / 2), round((resized - 56) / 2)
    assert np.array_equal(pixels.transpose(1, 2, 0), whole[top : top + 56, left : left + 56])


@pytest.mark.parametrize("crop", [True, False])
def test_images_of_two_sides(crop):
    data = encoded(noise((120, 90)))
    record = Record(data, 0, "a")
    assert EvalTransform(EvalTransformOptions(size=(40, 56), crop=crop))(record).image.shape == (3, 40, 56)
    for decoder in ("auto", "pillow"):
        prepared = TrainTransform(replace(AUGMENTED, size=(40, 56), re_prob=1.0, decoder=decoder))(Record(data, 0, "a"))
        assert prepared.image.shape == (3, 40, 56)
        assert all(box.top + box.height <= 40 and box.left + box.width <= 56 for box in prepared.erased)


@pytest.mark.parametrize("name", ["hamming", "lanczos", "bilinear", "random"])
def test_interpolations_of_the_original(name):
    data = encoded(noise())
    wanted = "bilinear" if name == "random" else name  # random is for training only
    expected = noise().resize((32, 32), getattr(Image.Resampling, wanted.upper()))
    pixels = evaluating(32, crop=False, interpolation=name)(Record(data, 0, "a")).image
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(expected))
    trained = TrainTransform(replace(PLAIN, interpolation=name))(Record(data, 0, "a")).image
    if name in ("hamming", "lanczos"):
        assert np.array_equal(trained, pixels)


def test_grey_images_keep_their_values_for_a_model_of_one_channel():
    ramp = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32)
    grey = encoded(Image.fromarray(ramp))
    deep = encoded(Image.fromarray(ramp.astype(np.uint16) * 257))
    for data in (grey, deep):
        for decoder in ("auto", "pillow"):
            one = TrainTransform(replace(PLAIN, channels=1, decoder=decoder))(Record(data, 0, "a")).image
            assert one.shape == (1, 32, 32) and np.array_equal(one[0], ramp)
        pixels = EvalTransform(EvalTransformOptions(size=(32, 32), crop=False, channels=1))(Record(data, 0, "a")).image
        assert np.array_equal(pixels[0], ramp)
    augmented = TrainTransform(replace(AUGMENTED, channels=1))(Record(grey, 0, "a"))
    assert augmented.image.shape == (1, 32, 32)


@pytest.mark.parametrize("channels", [2, 5, 12])
def test_images_of_many_bands_are_cropped_and_mirrored(channels):
    data, bands = tiff(channels)
    options = replace(PLAIN, channels=channels)
    assert np.array_equal(TrainTransform(options)(Record(data, 0, "a")).image, np.moveaxis(bands, -1, 0))
    mirrored = TrainTransform(replace(options, hflip=1.0))(Record(data, 0, "a")).image
    assert np.array_equal(mirrored, np.moveaxis(bands[:, ::-1], -1, 0))
    own = EvalTransform(EvalTransformOptions(size=(32, 32), crop=False, channels=channels))
    pixels = own(Record(data, 0, "a")).image
    assert np.array_equal(pixels, np.moveaxis(bands, -1, 0))
    with raises(DataError, "x.tif", f"{channels} channels", "IN_CHANS is 4"):
        TrainTransform(replace(PLAIN, channels=4))(Record(data, 0, "x.tif"))


def test_alpha_is_a_channel_where_the_model_has_four():
    image = noise((32, 32)).convert("RGBA")
    image.putalpha(77)
    pixels = TrainTransform(replace(PLAIN, channels=4))(Record(encoded(image), 0, "a")).image
    assert np.array_equal(pixels, np.moveaxis(np.asarray(image), -1, 0)) and (pixels[3] == 77).all()
    three = noise((32, 32))
    repeated = TrainTransform(replace(PLAIN, channels=4))(Record(encoded(three), 0, "a")).image
    assert np.array_equal(repeated, np.moveaxis(np.asarray(three), -1, 0)[[0, 1, 2, 0]])


def test_filters_that_arrays_do_not_have_are_refused_for_other_channels():
    with raises(ConfigError, "DATA.INTERPOLATION", "lanczos", "5 channels", "bicubic"):
        TrainTransform(replace(PLAIN, channels=5, interpolation="lanczos"))


def test_colour_augmentation_of_other_channels_is_refused():
    with raises(ConfigError, "AUG.AUTO_AUGMENT", "5 channels", "AUG.COLOR_JITTER"):
        TrainTransform(replace(AUGMENTED, channels=5))
