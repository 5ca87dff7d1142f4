"""COCO JSON: what is used, what is left out and why, and what is no COCO JSON."""

import copy
import json

import numpy as np
import pytest

from data.sources.coco import parse_coco, read_coco
from data.sources.instances import MARKED
from data.sources.run_lengths import RunLengths
from tests.tools.errors import raises
from utils.errors import DataError

TRIANGLE = [10, 10, 30, 10, 20, 30]
CONTENTS = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "height": 40, "width": 60},
        {"id": 3, "file_name": "a.jpg", "height": 50, "width": 50},
        {"id": 9, "file_name": "c.jpg", "height": 20, "width": 90},
    ],
    "categories": [{"id": 44, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 5, "name": "bird"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 10, 20, 20.5], "area": 200, "segmentation": [TRIANGLE]},
        {"id": 2, "image_id": 7, "category_id": 44, "bbox": [5, 5, 8, 8], "iscrowd": 1,
         "segmentation": {"size": [40, 60], "counts": [0, 2400]}},
        {"id": 3, "image_id": 9, "category_id": 5, "bbox": [-4, 0, 8, 9]},
    ],
}  # fmt: skip


def with_annotation(**changed):
    contents = copy.deepcopy(CONTENTS)
    contents["annotations"][0] |= changed
    return contents


def test_objects_are_read_in_the_order_of_the_file():
    read = parse_coco(CONTENTS, "x")
    assert [each.file for each in read.images] == ["b.jpg", "a.jpg", "c.jpg"] and read.images[0].size == (40, 60)
    assert read.class_names == ("dog", "cat", "bird") and read.category_ids == (44, 2, 5)
    cat, dogs = read.images[0].instances
    assert (cat.box, cat.label, cat.crowd) == ((10, 10, 30, 30.5), 1, False)
    assert np.array_equal(cat.shape[0], np.array(TRIANGLE).reshape(3, 2))
    assert dogs.crowd and dogs.label == 0 and dogs.shape == RunLengths((40, 60), (0, 2400))
    assert read.images[2].instances[0].shape is None and not read.omitted and read.summary() == []


def test_a_crowd_is_a_number():
    read = parse_coco(with_annotation(iscrowd="0"), "x")
    assert sum(map(len, read.omitted.values())) == 1  # "0" is no number, and not a crowd either
    assert parse_coco(with_annotation(iscrowd=None), "x").images[0].instances[0].crowd is False


@pytest.mark.parametrize(
    "changed",
    [
        {"bbox": [10**400, 10, 5, 20]},
        {"segmentation": {"size": [40, 60], "counts": [float("inf")]}},
        {"segmentation": [[1, 2, 3, 4, 5, 10**400]]},
        {"image_id": 4},
        {"category_id": 1},
        {"ignore": 1},
        {"bbox": [10, 10, 0.5, 20]},
        {"bbox": [10, 10, -5, 20]},
        {"bbox": [10, 10, 20]},
        {"bbox": [10, 10, 20, float("nan")]},
        {"bbox": [10, 10, 20, "20"]},
        {"bbox": None},
        {"bbox": [60, 10, 20, 20]},
        {"bbox": [-30, 10, 20, 20]},
        {"area": 0},
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": [[1, 2, 3, 4, 5]]},
        {"segmentation": [[1, 2, 3, 4, 5, float("inf")]]},
        {"segmentation": "text"},
        {"segmentation": {"size": [60, 40], "counts": [0, 2400]}},
        {"segmentation": {"size": [40, 60], "counts": [0, 2]}},
    ],
)
def test_what_training_cannot_use_is_left_out_by_reason(changed):
    read = parse_coco(with_annotation(**changed), "x")
    assert list(read.omitted.values()) == [(1,)] and len(read.images[0].instances) == 1
    [line] = read.summary()
    assert line.startswith("1 annotation ") and line.endswith(": 1")
    assert (MARKED in read.omitted) == ("ignore" in changed)


def test_a_bad_polygon_among_good_ones_is_left_out():
    read = parse_coco(with_annotation(segmentation=[[1, 2, 3, 4], TRIANGLE]), "x")
    assert len(read.images[0].instances[0].shape) == 1 and not read.omitted


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda c: c.pop("categories"), "categories"),
        (lambda c: c.update(images={}), "images"),
        (lambda c: c["images"][1].pop("height"), "height"),
        (lambda c: c["images"][1].update(id="7"), "id"),
        (lambda c: c["annotations"].append(4), "annotations"),
        (lambda c: c["images"][1].update(id=7), "7"),
        (lambda c: c["categories"][1].update(id=44), "44"),
        (lambda c: c["categories"][1].update(name="dog"), "dog"),
        (lambda c: c["annotations"][1].update(id=1), "1"),
        (lambda c: c["images"][1].update(file_name="b.jpg"), "b.jpg"),
        (lambda c: c["categories"][1].update(id=-2), "-2"),
    ],
)
def test_what_is_no_coco_json_is_named(change, named):
    contents = copy.deepcopy(CONTENTS)
    change(contents)
    with raises(DataError, "x", named):
        parse_coco(contents, "x")
    with raises(DataError, "x", "images"):
        parse_coco([contents], "x")


def test_a_file_is_read_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(CONTENTS))
    assert len(read_coco(path).images) == 3
    path.write_text(json.dumps(CONTENTS)[:-5])
    with raises(DataError, path):
        read_coco(path)
    for damaged in (b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(damaged)
        with raises(DataError, path):
            read_coco(path)
