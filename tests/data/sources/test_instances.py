"""The checks that objects of all file formats have in common."""

import pytest

from data.sources.instances import Omitted, checked_box, checked_polygons, is_finite


def test_boxes_may_extend_beyond_the_image():
    assert checked_box([-5, 3, 70, 20.5], (40, 60)) == (-5, 3, 70, 20.5)


@pytest.mark.parametrize(
    "box",
    [[1, 2, 1.5, 9], [9, 2, 1, 9], [1, 2, 3], None, "1234", [1, 2, float("inf"), 9], [60, 0, 70, 9], [0, -9, 9, 0]],
)
def test_boxes_that_cannot_be_trained(box):
    with pytest.raises(Omitted):
        checked_box(box, (40, 60))


def test_polygons_have_three_points():
    [points] = checked_polygons([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], ["x"]], (9, 9))
    assert points.shape == (3, 2)
    for bad in ([[1, 2, 3, 4]], [], None, "text", [[1, 2, 3, 4, 5, float("nan")]], [[1, 2, 3, 4, 5, 10**400]]):
        with pytest.raises(Omitted):
            checked_polygons(bad, (9, 9))


@pytest.mark.parametrize("far", [1e7, 1e300, -1e12])
def test_points_far_outside_are_not_traced(far):
    assert checked_polygons([[1, 2, 3, 4, 5, 900]], (9, 9))
    with pytest.raises(Omitted):
        checked_polygons([[1, 2, 3, 4, 5, far]], (9, 9))


def test_an_integer_of_hundreds_of_digits_is_not_finite():
    assert is_finite(3) and not is_finite(10**400) and not is_finite("3")
    with pytest.raises(Omitted):
        checked_box([1, 2, 10**400, 4], (9, 9))
