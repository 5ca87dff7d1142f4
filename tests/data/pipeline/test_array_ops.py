"""The operations on arrays beside timm's own: the same draws, and pixels within a stated distance."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import AugmentOp

from data.pipeline.array_ops import OPERATIONS

PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]
AFFINE = ("Rotate", "Shear", "Translate")


def seed(number):
    random.seed(number), np.random.seed(number), torch.manual_seed(number)


def distance(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other))


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
