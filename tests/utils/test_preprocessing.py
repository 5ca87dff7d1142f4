"""What pixels are normalised by, and how they are cropped."""

import pytest

from tests.tools import builders
from utils.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, image_size

OWN = Preprocessing((0.1, 0.2, 0.6), (0.3, 0.3, 0.3), 0.95, "bilinear")


def configured(channels=3, **keys):
    return OWN.configured(builders.configured(**keys), channels)


def test_auto_takes_the_values_of_the_model():
    assert configured() == Preprocessing(OWN.mean, OWN.std, 0.95, "bicubic")  # the filter is the configuration's


def test_keys_that_are_set_win():
    keys = {"DATA__MEAN": [0.5, 0.4, 0.3], "DATA__STD": [1, 1, 1], "TEST__CROP_PCT": 0.9}
    expected = Preprocessing((0.5, 0.4, 0.3), (1.0, 1.0, 1.0), 0.9, "lanczos")
    assert configured(**keys, DATA__INTERPOLATION="lanczos") == expected


def test_other_numbers_of_channels():
    assert configured(1).mean == (pytest.approx(0.3),) and configured(1).std == (pytest.approx(0.3),)
    assert configured(5).mean == (0.1, 0.2, 0.6, 0.1, 0.2)
    assert configured(5, DATA__MEAN=[1, 2, 3, 4, 5]).mean == (1.0, 2.0, 3.0, 4.0, 5.0)


def test_plain_values_and_a_log_line():
    assert Preprocessing().as_dict() == {
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "crop_pct": 0.875,
        "interpolation": "",
    }
    assert str(OWN) == "pixels normalised by mean 0.1 0.2 0.6, std 0.3 0.3 0.3; bilinear resizing"


@pytest.mark.parametrize(("value", "size"), [(224, (224, 224)), ([192, 256], (192, 256))])
def test_a_size_is_a_side_or_two(value, size):
    assert image_size(value) == size


def test_what_a_file_says_of_itself_is_read_back():
    pixels = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 0.9, "bilinear")
    assert Preprocessing.stored({"preprocessing": pixels.as_dict()}) == pixels
    assert Preprocessing.stored({"preprocessing": None}) is None is Preprocessing.stored({})
