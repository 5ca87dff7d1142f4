"""The fast way of training images beside timm's own: the same draws, and pixels within a stated distance."""

import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from data.pipeline.array_ops import OPERATIONS
from data.pipeline.decoding import decode, decode_jpeg, jpeg_size
from data.pipeline.transforms import TrainTransform, TrainTransformOptions, resize
from utils.errors import DataError

RECIPE = TrainTransformOptions()  # the paper's
PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]


def seed(number):
    random.seed(number), np.random.seed(number), torch.manual_seed(number)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def distance(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other))


AFFINE = ("Rotate", "Shear", "Translate")


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("interpolation", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, None])
def test_every_operation_gives_pillows_pixels(name, interpolation):
    """Affine ones: 1.2 levels on average, 2.5 at most; all others within one level, 0.01 on average."""
    settings = {"img_mean": (124, 116, 104), "magnitude_std": 2.5, "translate_const": 100}
    settings |= {} if interpolation is None else {"interpolation": interpolation}
    own, ours = (AugmentOp(name, prob=1.0, magnitude=6, hparams=settings) for _ in range(2))
    ours.aug_fn = OPERATIONS[name]
    means = []
    for number in range(12):
        photo = PHOTOS[number % 2].crop((100, 50, 500, 350)).resize((224, 200), Image.Resampling.BICUBIC)
        seed(number)
        expected = own(photo)
        seed(number)
        apart = distance(ours(np.asarray(photo)), expected)
        means.append(apart.mean())
        assert name.startswith(AFFINE) or apart.max() <= 1
    assert np.mean(means) <= (1.2 if name.startswith(AFFINE) else 0.01) and max(means) <= 2.5


@pytest.mark.parametrize("value", [0, 77, 255])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_a_flat_image_stays_what_pillow_makes_of_it(name, value):
    flat = Image.new("RGB", (32, 24), (value, 10, 200))
    settings = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC, "translate_const": 9}
    own, ours = (AugmentOp(name, prob=1.0, magnitude=4, hparams=settings) for _ in range(2))
    ours.aug_fn = OPERATIONS[name]
    seed(0)
    expected = own(flat)
    seed(0)
    apart = distance(ours(np.asarray(flat)), expected)
    assert (np.median(apart) if name.startswith(AFFINE) else apart.max()) <= 1


class Draws:
    """Puts itself in the place of what timm draws for, and keeps what was drawn."""

    def __init__(self, monkeypatch):
        self.seen = []
        original = RandomResizedCropAndInterpolation.get_params

        def get_params(image, scale, ratio):
            self.seen.append(original(image, scale, ratio))
            return self.seen[-1]

        monkeypatch.setattr(RandomResizedCropAndInterpolation, "get_params", staticmethod(get_params))

    def take_over(self, augment):
        for operation in augment.ops:
            operation.aug_fn = self._record(operation.name)

    def _record(self, name):
        def drawn(image, *arguments, **_):
            self.seen.append((name, *arguments))
            return image

        return drawn

    def mirrored(self, image):
        self.seen.append(bool(np.asarray(image)[0, 0, 0] > np.asarray(image)[0, -1, 0]))
        return image


@pytest.mark.slow
def test_20000_draws_equal_those_of_timms_own_pipeline(monkeypatch):
    """Crop boxes, mirroring, operations and their magnitudes, one by one and so in distribution."""
    ramp = np.tile(np.arange(250, dtype=np.uint8)[None, :, None], (188, 1, 3))
    image, data = Image.fromarray(ramp), jpeg(Image.fromarray(ramp))
    draws = Draws(monkeypatch)
    policy = {"interpolation": RECIPE.interpolation, "auto_augment": RECIPE.auto_augment}
    own = create_transform(8, is_training=True, **policy, re_prob=0.0).transforms[:3]
    ours = TrainTransform(replace(RECIPE, size=(8, 8)))
    draws.take_over(own[2])
    draws.take_over(ours._steps[1])
    steps = ours._steps
    ours._steps = [steps[0], draws.mirrored, steps[1]]
    counts = {}
    for number in range(20_000):
        draws.seen.clear()
        seed(number)
        own[2](draws.mirrored(own[1](own[0](image))))
        expected = list(draws.seen)
        draws.seen.clear()
        seed(number)
        ours(data, "a.jpg")
        assert draws.seen == expected
        for name, *_ in expected[2:]:
            counts[name] = counts.get(name, 0) + 1
    assert len(counts) == 15 and min(counts.values()) > 1000  # each is drawn 1333 times on average


@pytest.mark.parametrize("count", [1, 3])
def test_erased_boxes_are_those_of_timm(count):
    erasing = RandomErasing(0.5, mode="const", max_count=count, device="cpu")
    transform = TrainTransform(replace(RECIPE, size=(32, 32), re_prob=0.5, re_count=count))
    erased = 0
    for number in range(500):
        seed(number)
        expected = erasing(torch.ones(3, 32, 32))
        seed(number)
        ours, boxes = torch.ones(3, 32, 32), transform._boxes()
        for box in boxes:
            ours[:, box.top : box.top + box.height, box.left : box.left + box.width] = 0
        assert torch.equal(ours, expected)
        erased += bool(boxes)
    assert 200 < erased < 300


def test_whole_samples_are_within_a_level_of_pillows():
    """Mean absolute difference of pixels over 300 samples of the recipe: 0.3 of 255 levels."""
    fast, slow = (TrainTransform(replace(RECIPE, decoder=decoder)) for decoder in ("auto", "pillow"))
    photos = [jpeg(photo.crop((60, 20, 560, 395))) for photo in PHOTOS]
    means = []
    for number in range(300):
        samples = []
        for transform in (fast, slow):
            seed(number)
            samples.append(transform(photos[number % 2], "a.jpg"))
        assert samples[0].boxes == samples[1].boxes
        means.append(distance(samples[0].pixels, samples[1].pixels).mean())
    assert 0 < np.mean(means) < 0.5 and np.median(means) < 0.01, (np.mean(means), np.median(means), max(means))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("box", [(0, 0, 640, 427), (100, 50, 130, 90), (10, 10, 500, 60), (3, 3, 4, 4)])
def test_resizing_is_within_a_level_of_pillows(mode, box):
    crop = PHOTOS[0].crop(box)
    expected = crop.resize((224, 224), getattr(Image.Resampling, mode.upper()))
    apart = distance(resize(np.asarray(crop), (224, 224), mode), expected)
    assert apart.max() <= 1 and apart.mean() < 0.02


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}])
def test_decoded_pixels_are_pillows_own(mode, options):
    for size in ((333, 257), (16, 16), (1, 1)):
        data = jpeg(PHOTOS[1].crop((0, 0, *size)).convert(mode), **options)
        assert jpeg_size(data) == size[::-1]
        pixels = decode_jpeg(data, "a", size[1], size[0])
        assert np.array_equal(pixels, np.asarray(decode(data, "a")))


def test_large_crops_are_decoded_smaller():
    """A photograph of 2560 x 1708: a crop that holds enough pixels even at half the sides is not decoded in full."""
    large = jpeg(PHOTOS[0].resize((2560, 1708), Image.Resampling.BICUBIC))
    plain = replace(RECIPE, auto_augment="none", color_jitter=0.0, scale=(0.5, 1.0))
    fast, slow = (TrainTransform(replace(plain, decoder=decoder)) for decoder in ("auto", "pillow"))
    means = []
    for number in range(10):
        samples = []
        for transform in (fast, slow):
            seed(number)
            samples.append(transform(large, "a.jpg").pixels)
        means.append(distance(*samples).mean())
    assert 0.05 < np.mean(means) < 1.5, means  # above 0: it is another way


def test_other_images_and_damaged_ones_go_to_pillow():
    data = jpeg(PHOTOS[0].crop((0, 0, 64, 48)))
    buffer = io.BytesIO()
    PHOTOS[0].crop((0, 0, 64, 48)).save(buffer, "PNG")
    assert jpeg_size(buffer.getvalue()) is None and jpeg_size(b"\xff\xd8 no more") is None and jpeg_size(b"") is None
    assert jpeg_size(jpeg(PHOTOS[0].convert("CMYK"))) is None
    with pytest.raises(DataError, match="not a readable image .*: x.jpg"):
        decode_jpeg(data[:-600], "x.jpg", 48, 64)
    transform = TrainTransform(replace(RECIPE, size=(32, 32)))
    for number in range(5):
        seed(number)
        assert transform(buffer.getvalue(), "a.png").pixels.shape == (3, 32, 32)
