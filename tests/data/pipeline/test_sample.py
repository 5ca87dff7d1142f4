"""Samples become batches: stacked, or as lists."""

import numpy as np
import torch

from data.pipeline.sample import Collated, Erased, Sample, as_lists, stack


def sample(value, *rectangles, target=None, size=4):
    image = np.full((3, size, size), value, np.uint8)
    return Sample(image, value if target is None else target, rectangles)


def test_batches_number_the_rectangles_by_image():
    one, other = Erased(1, 2, 3, 4, 55), [Erased(0, 0, 1, 1, 6), Erased(5, 5, 2, 2, 7)]
    batch = stack([sample(0), sample(1, one), sample(2, *other)])
    assert batch.images.shape == (3, 3, 4, 4) and batch.images.dtype == torch.uint8
    assert batch.images[:, 0, 0, 0].tolist() == batch.targets.tolist() == [0, 1, 2]
    assert batch.erased.tolist() == [[1, 1, 2, 3, 4, 55], [2, 0, 0, 1, 1, 6], [2, 5, 5, 2, 2, 7]]
    assert stack([sample(0)]).erased.shape == (0, 6)


def test_targets_are_stacked_where_they_can_be():
    maps = [np.full((2, 2), value) for value in (3, 4)]
    assert stack([sample(0, target=each) for each in maps]).targets.tolist() == [[[3, 3], [3, 3]], [[4, 4], [4, 4]]]
    assert stack([sample(0, target=torch.tensor([1.5]))] * 2).targets.tolist() == [[1.5], [1.5]]
    assert stack([Sample(np.zeros((1, 2, 2), np.uint8), None)] * 2).targets is None
    assert stack([sample(0, target={"boxes": 1})] * 2).targets == [{"boxes": 1}] * 2


def test_images_of_different_sizes_stay_a_list():
    batch = as_lists([sample(0, target="a"), sample(1, Erased(0, 0, 1, 1, 2), target="b", size=6)])
    assert [tuple(image.shape) for image in batch.images] == [(3, 4, 4), (3, 6, 6)] and batch.targets == ["a", "b"]
    assert batch.erased.tolist() == [[1, 0, 0, 1, 1, 2]]


def test_a_batch_without_readable_samples_is_empty():
    assert Collated(torch.zeros(1)).samples == ()
