"""Images with objects: boxes and masks follow the image, and batches are padded with zeros."""

import io
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from data.pipeline.boxed import BoxedEval, BoxedOptions, BoxedTrain, collate_boxed
from data.pipeline.device import Normalize
from data.pipeline.sample import Sample
from data.sources.base import Record
from data.sources.instances import AnnotatedImage, Instance
from data.sources.run_lengths import RunLengths
from tests.tools.errors import raises
from utils.errors import DataError
from utils.preprocessing import Preprocessing

OPTIONS = BoxedOptions((40,), 200, (64, 200), 0.0, (60,), (20, 30), 0.0, True)
BOX = (12.0, 8.0, 30.0, 24.0)


def square(x1, y1, x2, y2):
    return (np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64),)


def record(size=(40, 60), objects=None, crowd=False, exif=None):
    """A dark image with a bright rectangle at BOX, its only object."""
    pixels = np.full((*size, 3), 20, np.uint8)
    x1, y1, x2, y2 = map(int, BOX)
    pixels[y1:y2, x1:x2] = 220
    own = (Instance(BOX, 1, square(*BOX), crowd),) if objects is None else objects
    buffer = io.BytesIO()
    options = {"exif": exif} if exif else {}
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return Record(buffer.getvalue(), AnnotatedImage(1, "a.png", size, own), "a.png")


def bright(sample):
    """The bounds of the bright pixels: x1, y1, x2, y2."""
    rows, columns = np.nonzero(sample.image[0] > 120)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def transform(seed=0, **changed):
    np.random.seed(seed)
    options = BoxedOptions(**{**OPTIONS.__dict__, **changed})
    return BoxedTrain(options)(record())


@pytest.mark.parametrize("changed", [{}, {"short": (80,)}, {"flip": 1.0}, {"crop_rate": 1.0, "crop": (50, 60)}])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_masks_follow_the_image(changed, seed):
    sample = transform(seed, **changed)
    (box,), (mask,) = sample.target["boxes"].tolist(), sample.target["masks"].numpy()
    np.testing.assert_allclose(box, bright(sample), atol=2)
    rows, columns = np.nonzero(mask)
    np.testing.assert_allclose([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], box, atol=2)
    assert sample.target["labels"].tolist() == [1] and sample.target["boxes"].dtype == torch.float32
    assert mask.shape == sample.image.shape[1:] == tuple(sample.target["size"])


def test_a_flip_mirrors_exactly():
    plain, flipped = transform(), transform(flip=1.0)
    assert np.array_equal(flipped.image, plain.image[:, :, ::-1])
    (x1, y1, x2, y2), (found,) = plain.target["boxes"][0].tolist(), flipped.target["boxes"].tolist()
    assert found == [60 - x2, y1, 60 - x1, y2]
    assert torch.equal(flipped.target["masks"], plain.target["masks"].flip(2))


def test_short_sides_are_drawn_within_the_long_one():
    sides = {transform(seed, short=(20, 30), long=40).target["size"] for seed in range(20)}
    assert sides == {(20, 30), (27, 40)}  # 30 x 45 would exceed 40


def test_crops_have_sides_in_the_range_and_lose_what_is_outside():
    seen = set()
    for seed in range(40):
        with mock.patch("data.pipeline.boxed._Shown.resized", lambda self, *_: self):
            sample = transform(seed, crop_rate=1.0)
        height, width = sample.target["size"]
        assert 20 <= height <= 30 and 20 <= width <= 30
        assert len(sample.target["boxes"]) == len(sample.target["labels"]) == len(sample.target["masks"])
        boxes = sample.target["boxes"]
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        seen.add(len(boxes))
    assert seen == {0, 1}


def test_crowds_are_trained_as_background():
    runs = RunLengths.of(np.ones((40, 60), np.uint8))
    own = (Instance((0, 0, 60, 40), 0, runs, True), Instance(BOX, 1, square(*BOX), False))
    assert BoxedTrain(OPTIONS)(record(objects=own)).target["labels"].tolist() == [1]
    empty = BoxedTrain(OPTIONS)(record(crowd=True)).target
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 40, 60)


def test_masks_are_made_only_if_asked():
    boxes_only = BoxedOptions(**{**OPTIONS.__dict__, "masks": False})
    unshaped = record(objects=(Instance(BOX, 0, None, False),))
    assert "masks" not in BoxedTrain(boxes_only)(unshaped).target
    with raises(DataError, "a.png", "without a mask", "MODEL.DETECTOR.MASKS"):
        BoxedTrain(OPTIONS)(unshaped)


def test_evaluation_resizes_within_both_sides():
    sample = BoxedEval(OPTIONS)(record())
    assert sample.image.shape == (3, 64, 96) and sample.target == {"original": (40, 60)}
    narrow = BoxedOptions(**{**OPTIONS.__dict__, "test": (64, 90)})
    assert BoxedEval(narrow)(record()).image.shape == (3, 60, 90)


def test_an_image_of_another_size_than_annotated_is_an_error():
    wrong = record()._replace(target=AnnotatedImage(1, "a.png", (41, 60), ()))
    with raises(DataError, "a.png", "60x41", "60x40", "correct one"):
        BoxedTrain(OPTIONS)(wrong)
    exif = Image.Exif()
    exif[0x0112] = 6
    with raises(DataError, "a.png", "set DATA.EXIF to ignore"):
        BoxedTrain(OPTIONS)(record(exif=exif))
    kept = BoxedOptions(**{**OPTIONS.__dict__, "upright": False})
    assert BoxedTrain(kept)(record(exif=exif)).target["size"] == (40, 60)


def test_a_batch_is_padded_with_zeros_to_multiples_of_32():
    sizes = [(30, 70), (64, 40)]
    samples = [Sample(np.full((3, *size), 100, np.uint8), {"size": size, "boxes": torch.zeros(0, 4)}) for size in sizes]
    collated = collate_boxed(samples)
    assert collated.images.shape == (2, 3, 64, 96) and [each["size"] for each in collated.targets] == sizes
    images = Normalize(Preprocessing(), torch.device("cpu"), "const")(collated)
    for image, (height, width) in zip(images, sizes, strict=True):
        assert (image[:, :height, :width] != 0).all()
        assert not image[:, height:].any() and not image[:, :, width:].any()


def test_images_of_evaluation_keep_their_sizes():
    collated = collate_boxed([BoxedEval(OPTIONS)(record()), BoxedEval(OPTIONS)(record((60, 40)))])
    assert [tuple(image.shape) for image in collated.images] == [(3, 64, 96), (3, 96, 64)]
