"""The transforms of the released recipe, against straight readings of it with the same draws."""

import io
import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.pipeline.dataset import Collator
from data.pipeline.decoding import ORIENTATION
from data.pipeline.dense import (
    DenseEval,
    DenseOptions,
    DenseTrain,
    collate_dense,
    distort_colours,
    draw_crop,
    resize_image,
    resize_labels,
    scaled_size,
)
from data.pipeline.device import Normalize
from data.pipeline.label_maps import IGNORED, LabelCoding
from data.sources.base import Record
from tests.data.pipeline.test_label_maps import encoded
from tests.tools.errors import raises
from utils.errors import DataError
from utils.preprocessing import Preprocessing

OPTIONS = DenseOptions((128, 32), (0.5, 2.0), (24, 20), 0.75, 0.5, True)
CODING = LabelCoding({value: value for value in range(6)} | {255: IGNORED})


def photo(height=40, width=50, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


def record(image=None, labels=None):
    image = photo() if image is None else image
    labels = np.random.default_rng(1).integers(0, 6, image.shape[:2], dtype=np.uint8) if labels is None else labels
    return Record(encoded(image), encoded(labels), "a.png")


@pytest.mark.parametrize(
    ("size", "expected"), [((683, 512), (683, 512)), ((300, 400), (512, 683)), ((500, 4000), (256, 2048))]
)
def test_sizes_stay_within_both_bounds(size, expected):
    assert scaled_size(size, 2048, 512) == expected


def test_resizing_is_opencvs():
    image, labels = photo(), np.random.default_rng(1).integers(0, 6, (40, 50), dtype=np.uint8)
    assert np.array_equal(resize_image(image, (64, 33)), cv2.resize(image, (33, 64), interpolation=cv2.INTER_LINEAR))
    assert set(np.unique(resize_labels(labels, (77, 31)))) <= set(range(6))
    assert resize_image(image[..., :1], (8, 9)).shape == (8, 9, 1)


def test_a_crop_that_one_class_dominates_is_drawn_again_ten_times():
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 30:] = 1
    np.random.seed(0)
    shares = []
    for _ in range(50):
        counts = np.bincount(labels[draw_crop(labels, (16, 16), 0.75)].flatten(), minlength=2)
        shares.append(counts.max() / counts.sum())
    assert sum(share < 0.75 for share in shares) > 40  # of single draws, a quarter would be
    labels[:] = IGNORED
    np.random.seed(3)
    draw_crop(labels, (16, 16), 0.75)
    after = np.random.random()
    np.random.seed(3)
    for _ in range(11):
        np.random.randint(0, 25), np.random.randint(0, 25)
    assert np.random.random() == after  # eleven draws; the last is not checked


def straight(image, seed):
    """PhotoMetricDistortion as its definition reads, in BGR."""
    np.random.seed(seed)
    draw, image = np.random, image[..., ::-1]

    def convert(x, alpha=1.0, beta=0.0):
        return np.clip(x.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    if draw.randint(2):
        image = convert(image, beta=draw.uniform(-32, 32))
    mode = draw.randint(2)
    if mode == 1 and draw.randint(2):
        image = convert(image, alpha=draw.uniform(0.5, 1.5))
    if draw.randint(2):
        hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=draw.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if draw.randint(2):
        hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + draw.randint(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if mode == 0 and draw.randint(2):
        image = convert(image, alpha=draw.uniform(0.5, 1.5))
    return image[..., ::-1]


def test_colours_are_distorted_as_released():
    different = 0
    for seed in range(24):
        expected = straight(photo(), seed)
        np.random.seed(seed)
        assert np.array_equal(distort_colours(photo()), expected), seed
        different += int(not np.array_equal(expected, photo()))
    assert different > 12


def test_a_training_sample_depends_on_the_seed_only():
    samples = []
    for seed in (5, 5, 6):
        np.random.seed(seed), random.seed(99)
        samples.append(DenseTrain(OPTIONS, CODING)(record()))
    assert np.array_equal(samples[0].image, samples[1].image) and np.array_equal(samples[0].target, samples[1].target)
    assert not np.array_equal(samples[0].image, samples[2].image)
    assert samples[0].image.shape == (3, 24, 20) and samples[0].target.shape == (24, 20)


def test_image_and_labels_go_through_the_same_geometry():
    """An image whose red channel is its label stays so, up to the smoothing at the edges."""
    labels = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((40, 40), np.uint8))
    image = np.repeat(labels[..., None] * 40, 3, 2)
    options = DenseOptions((240, 80), (0.8, 1.2), (48, 48), 1.0, 0.5, False)
    for seed in range(8):
        np.random.seed(seed)
        sample = DenseTrain(options, CODING)(record(image, labels))
        same = np.abs(sample.image[0].astype(int) - sample.target.astype(int) * 40) < 5
        assert same.mean() > 0.85


def test_the_padding_is_zero_after_normalisation_and_ignored():
    options = DenseOptions((32, 16), (1.0, 1.0), (24, 40), 1.0, 0.0, False)
    sample = DenseTrain(options, CODING)(record(photo(40, 80)))  # 16 x 32
    (target,) = collate_dense([sample]).targets
    assert (target[16:] == IGNORED).all() and (target[:, 32:] == IGNORED).all() and (target[:16, :32] < 6).all()
    batch = Normalize(Preprocessing(), torch.device("cpu"), "const")(collate_dense([sample]))
    assert (batch[0, :, 16:] == 0).all() and (batch[0, :, :, 32:] == 0).all() and (batch[0, :, :16, :32] != 0).any()


def test_evaluation_resizes_the_image_at_each_scale_and_keeps_the_labels():
    options = DenseOptions((128, 32), (0.5, 2.0), (24, 20), 0.75, 0.5, True, scales=(0.5, 1.0))
    samples = [DenseEval(options, CODING)(record(photo(40, 60, seed)))._replace(number=seed) for seed in range(2)]
    batch = Collator(collate_dense)(samples)
    assert [tuple(each.shape) for each in batch.images] == [(3, 16, 24), (3, 32, 48)] * 2
    assert batch.samples == (0, 1) and batch.targets[1]["size"] == (40, 60)
    assert batch.targets[0]["labels"].shape == (40, 60)
    alone = DenseEval(options, CODING)(Record(encoded(photo()), None, "a.png"))
    assert alone.target == {"size": (40, 50)}


@pytest.mark.parametrize("shape", [(40, 49), (50, 40)])
def test_another_size_of_the_label_map_is_named(shape):
    with raises(DataError, "a.png", "x".join(map(str, shape)), "40x50", "correct one"):
        DenseEval(OPTIONS, CODING)(record(photo(), np.zeros(shape, np.uint8)))


@pytest.mark.parametrize(("upright", "remedy"), [(True, "ignore"), (False, "apply")])
def test_a_label_map_turned_against_its_image_names_the_key(upright, remedy):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(photo(40, 50)).save(buffer, "JPEG", exif=exif)
    shape = (40, 50) if upright else (50, 40)
    turned = Record(buffer.getvalue(), encoded(np.zeros(shape, np.uint8)), "a.jpg")
    with raises(DataError, "a.jpg", f"set DATA.EXIF to {remedy}"):
        DenseEval(replace(OPTIONS, upright=upright), CODING)(turned)
