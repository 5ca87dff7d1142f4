"""Masks of polygons, pixel for pixel as COCO's tools draw them."""

import numpy as np
import pytest

from data.pipeline.object_masks import object_mask, polygon_mask
from data.sources.run_lengths import RunLengths


def test_a_rectangle_covers_the_pixels_whose_centres_it_contains():
    mask = polygon_mask(np.array([[2, 3], [7, 3], [7, 6], [2, 6]]), (10, 12))
    assert mask.dtype == np.uint8 and mask.shape == (10, 12)
    assert mask[3:6, 2:7].all() and mask.sum() == 15


def test_polygons_are_cut_at_the_image():
    assert polygon_mask(np.array([[-5, -5], [50, -5], [50, 50], [-5, 50]]), (6, 8)).all()
    assert not polygon_mask(np.array([[20, 20], [30, 20], [25, 30]]), (6, 8)).any()


def test_an_object_is_the_union_of_its_polygons():
    first, second = np.array([[0, 0], [4, 0], [4, 4], [0, 4]]), np.array([[2, 2], [6, 2], [6, 6], [2, 6]])
    mask = object_mask((first, second), (8, 8))
    assert mask.sum() == 16 + 16 - 4 and mask.max() == 1
    assert np.array_equal(object_mask(RunLengths.of(mask), (8, 8)), mask)


# polygon, size, run lengths of pycocotools 2.0.11
DRAWN = [
    ([3.4, 2.1, 17.9, 4.6, 12.2, 18.3, 5.5, 11.7], (20, 24), "n11c04M3L2N1O1O1O100O00M3N2M3N3Me3"),
    ([1, 1, 10, 1, 1, 10, 10, 10], (12, 12), "e013031M011O0O1150JO11N11ON315O?"),
    ([-4.2, 3.3, 9.7, -2.8, 15.1, 9.9, 6.05, 14.45], (12, 10), "1751O1N[2"),
    ([0.5, 0.5, 6.5, 0.5, 6.5, 6.5, 0.5, 6.5, 3.2, 3.9], (8, 8), "9140N100040000007"),
]


@pytest.mark.parametrize("points, size, text", DRAWN)
def test_run_lengths_equal_those_of_pycocotools(points, size, text):
    assert RunLengths.of(polygon_mask(np.array(points).reshape(-1, 2), size)).text() == text


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_random_polygons_equal_those_of_pycocotools():
    tools = pytest.importorskip("pycocotools.mask")
    random = np.random.RandomState(0)
    for i in range(300):
        height, width = (int(side) for side in random.randint(1, 40, 2))
        points = np.round(random.uniform(-10, 50, (random.randint(3, 8), 2)), 2 * (i % 2))
        coded = tools.frPyObjects([points.ravel().tolist()], height, width)[0]
        mask = polygon_mask(points, (height, width))
        assert np.array_equal(mask, tools.decode(coded)), points
        assert RunLengths.of(mask).text() == tools.encode(np.asfortranarray(mask))["counts"].decode()
