"""Objects in XML of Pascal VOC and in text of YOLO."""

import numpy as np
import pytest

from data.sources.box_files import parse_voc, parse_yolo
from tests.tools.errors import raises
from utils.errors import DataError

LABELS = {"cell": 0, "platelet": 1}


def voc(*objects, size="<size><width>60</width><height>40</height></size>"):
    return f"<annotation><filename>a.jpg</filename>{size}{''.join(objects)}</annotation>".encode()


def thing(name="cell", box=(1, 1, 60, 40), more=""):
    names = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{each}>{value}</{each}>" for each, value in zip(names, box, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def test_a_box_of_voc_includes_its_last_pixel():
    size, instances, omitted = parse_voc(voc(thing(), thing("platelet", (11, 6, 20, 15.5))), LABELS, "x")
    assert (size, omitted) == ((40, 60), {})
    assert [each.box for each in instances] == [(0, 0, 60, 40), (10, 5, 20, 15.5)]
    assert [each.label for each in instances] == [0, 1] and instances[0].shape is None


def test_difficult_objects_of_voc_are_crowds():
    """Background in training, ignored in evaluation."""
    read = parse_voc(voc(thing(more="<difficult>1</difficult>"), thing(more="<difficult>0</difficult>")), LABELS, "x")
    assert [one.crowd for one in read.instances] == [True, False] and not read.omitted


def test_objects_of_voc_that_cannot_be_trained_are_counted():
    bad = thing(box=(5, 5, 4, 9)), thing(box=("", 5, 9, 9)), "<object><name>cell</name></object>"
    read = parse_voc(voc(*bad, thing()), LABELS, "x")
    assert len(read.instances) == 1 and sum(read.omitted.values()) == 3
    assert parse_voc(voc(), LABELS, "x").instances == ()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"<annotation>", voc(size=""), voc(size="<size><width>0</width></size>")),
        voc(size="<size><width>inf</width><height>inf</height></size>"),
        b'<?xml version="1.0" encoding="rot13"?><annotation/>',
    ],
)
def test_what_is_no_voc_file_is_named(data):
    with raises(DataError, "x"):
        parse_voc(data, LABELS, "x")


def test_an_unknown_class_is_an_error():
    with raises(DataError, "x", "cel", "cell"):
        parse_voc(voc(thing("cel")), LABELS, "x")


def test_yolo_has_centres_and_sides_or_polygons():
    read = parse_yolo("1 0.5 0.5 0.5 0.25\n\n0 0.1 0.1 0.5 0.1 0.3 0.5\n", (40, 60), 2, "x")
    box, polygon = read.instances
    assert box.box == (15, 15, 45, 25) and box.label == 1 and box.shape is None
    assert polygon.box == pytest.approx((6, 4, 30, 20)) and polygon.label == 0
    np.testing.assert_allclose(polygon.shape[0], [[6, 4], [30, 4], [18, 20]])
    assert parse_yolo("", (40, 60), 2, "x").instances == ()


def test_boxes_of_yolo_without_area_are_counted():
    read = parse_yolo("0 0.5 0.5 0 0.2\n0 nan 0.5 0.1 0.2\n0 0.5 0.5 0.5 0.5", (40, 60), 1, "x")
    assert len(read.instances) == 1 and sorted(read.omitted.values()) == [1, 1]


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5 0.5", "0 0.5 0.5 0.5 0.5 0.5", "dog 0.5 0.5 0.5 0.5", "2 0.5 0.5 0.5 0.5", "-1 0.5 0.5 0.5 0.5",
             "0 12 20 33 20", "0"]
)  # fmt: skip
def test_a_line_that_is_no_annotation_is_named(line):
    with raises(DataError, "x:2"):
        parse_yolo(f"0 0.5 0.5 0.5 0.5\n{line}", (40, 60), 2, "x")
