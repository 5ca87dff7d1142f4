"""Label maps of every kind of file, and values without a class."""

import io

import numpy as np
import pytest
from PIL import Image

from data.pipeline.label_maps import (
    IGNORED,
    LabelCoding,
    code_of,
    default_colours,
    histogram,
    read_label_map,
    shown,
)
from tests.tools.errors import raises
from utils.errors import DataError


def encoded(pixels, mode=None, kind="PNG"):
    image = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        image = Image.frombytes("P", image.size, np.asarray(pixels).tobytes())
        image.putpalette([*range(256)] * 3)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


EIGHT = np.array([[0, 1, 2], [255, 7, 0]], np.uint8)


@pytest.mark.parametrize("mode", [None, "P"])
def test_greyscale_and_palette_maps_hold_the_classes_themselves(mode):
    assert read_label_map(encoded(EIGHT, mode), "x").tolist() == EIGHT.tolist()


def test_16_bit_maps_keep_their_high_byte():
    assert read_label_map(encoded(np.array([[0, 300], [65535, 1]], np.uint16)), "x").tolist() == [[0, 300], [65535, 1]]


def test_a_one_bit_mask_is_read_as_0_and_1():
    assert read_label_map(encoded(np.array([[True, False]])), "x").tolist() == [[1, 0]]


def test_colours_have_a_value_each_and_greys_are_their_level():
    rgb = np.array([[[128, 0, 0], [0, 0, 7], [7, 7, 7]]], np.uint8)
    values = read_label_map(encoded(rgb), "x")[0].tolist()
    assert values == [code_of((128, 0, 0)), code_of((0, 0, 7)), 7] and len(set(values)) == 3
    assert [shown(value) for value in values] == ["128,0,0", "0,0,7", "7"]


def test_the_classes_of_colours_are_decoded():
    coding = LabelCoding({code_of((128, 0, 0)): 0, code_of((0, 128, 0)): 1, code_of((0, 0, 0)): IGNORED})
    rgb = np.array([[[0, 128, 0], [128, 0, 0], [0, 0, 0]]], np.uint8)
    decoded = coding.decode(encoded(rgb), "x")
    assert decoded.dtype == np.uint8 and decoded.tolist() == [[1, 0, 255]]


def test_a_value_without_a_class_is_named_with_the_map():
    with raises(DataError, "a.png", "7", "255"):
        LabelCoding({0: 0, 1: 1, 2: 2}).decode(encoded(EIGHT), "a.png")


def test_what_is_no_image_is_named():
    with raises(DataError, "a.png", "label map"):
        read_label_map(b"nonsense", "a.png")
    with raises(DataError, "a.tif", "integer"):
        read_label_map(encoded(np.ones((2, 2), np.float32), kind="TIFF"), "a.tif")


@pytest.mark.parametrize(
    ("pixels", "dtype"), [(EIGHT, np.uint8), (EIGHT.astype(np.uint16), np.uint16), (EIGHT.astype(np.int32), np.uint16)]
)
def test_small_values_stay_small_and_are_decoded_and_counted_alike(pixels, dtype):
    data = encoded(pixels, kind="TIFF")
    values = read_label_map(data, "x")
    assert values.dtype == dtype and histogram([values]) == {0: 2, 1: 1, 2: 1, 7: 1, 255: 1}
    decoded = LabelCoding({0: 3, 1: 1, 2: 2, 7: 0, 255: IGNORED}).decode(data, "x")
    assert decoded.dtype == np.uint8 and decoded.tolist() == [[3, 1, 2], [255, 0, 3]]


def test_negative_and_large_values_are_kept():
    wide = np.array([[-1, 70000]], np.int32)
    assert read_label_map(encoded(wide, kind="TIFF"), "x").tolist() == [[-1, 70000]]
    coding = LabelCoding({-1: IGNORED, 70000: 4})
    assert coding.decode(encoded(wide, kind="TIFF"), "x").tolist() == [[IGNORED, 4]]
    with raises(DataError, "x", "0"):
        coding.decode(encoded(np.array([[0, 70000]], np.int32), kind="TIFF"), "x")


def test_the_histogram_counts_pixels():
    assert histogram([np.array([[0, 0, 5]]), np.array([[5]])]) == {0: 2, 5: 2}


def test_default_colours_are_those_of_pascal_voc():
    assert default_colours(5) == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert len(set(default_colours(255))) == 255
