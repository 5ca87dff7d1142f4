"""Annotations for evaluation, in COCO's format."""

import json

import numpy as np
import pytest

from data.sources.object_store import ObjectStore
from data.sources.object_truth import truth_of
from tasks.detection.average_precision import average_precision
from tests.data.sources.object_sets import WRITERS, made, write_coco


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_truth(tmp_path, layout):
    WRITERS[layout](tmp_path, {"val": 2})
    truth = truth_of(ObjectStore(tmp_path).open("val", ("red", "blue")))
    expected = [each for image in made("val", 2) for each in image.objects]
    names = {each["id"]: each["name"] for each in truth["categories"]}
    assert [each["id"] for each in truth["annotations"]] == list(range(1, len(expected) + 1))
    for found, (label, x1, y1, x2, y2) in zip(truth["annotations"], expected, strict=True):
        assert names[found["category_id"]] == ("red", "blue")[label] and found["iscrowd"] == 0
        assert found["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
        assert found["area"] == pytest.approx((x2 - x1) * (y2 - y1)) and found["segmentation"]
    assert [(each["height"], each["width"]) for each in truth["images"]] == [
        each.pixels.shape[:2] for each in made("val", 2)
    ]


def test_a_json_file_counts_as_it_is(tmp_path):
    """Also annotations that training leaves out; crowds and areas are not recomputed."""
    write_coco(tmp_path, {"val": 2})
    path = tmp_path / "annotations/instances_val2017.json"
    contents = json.loads(path.read_text())
    first, second = contents["annotations"][:2]
    height, width = contents["images"][0]["height"], contents["images"][0]["width"]
    first |= {"area": 5, "iscrowd": 1, "segmentation": {"size": [height, width], "counts": [9, height * width - 9]}}
    second |= {"bbox": [1, 1, 0.5, 4], "area": 2}
    del second["segmentation"], second["iscrowd"]
    contents["annotations"] += [{"id": 99, "image_id": 77, "category_id": 44, "bbox": [0, 0, 9, 9]}]
    path.write_text(json.dumps(contents))
    truth = truth_of(ObjectStore(tmp_path).open("val"))["annotations"]
    assert len(truth) == len(contents["annotations"]) - 1  # of an unknown image
    assert truth[0] == {**first, "id": 1} and truth[1]["area"] == 2 and truth[1]["iscrowd"] == 0
    assert truth[1]["segmentation"] == [[1, 1, 1.5, 1, 1.5, 5, 1, 5]]


def test_the_area_of_a_polygon_is_its_own(tmp_path):
    WRITERS["yolo"](tmp_path, {"val": 1})
    height, width = made("val", 1)[0].pixels.shape[:2]
    (tmp_path / "labels/val/val_0.txt").write_text("0 0.1 0.1 0.9 0.1 0.1 0.9\n")
    (found,) = truth_of(ObjectStore(tmp_path).open("val"))["annotations"]
    assert found["area"] == pytest.approx(0.32 * height * width)
    x, y = np.reshape(found["segmentation"][0], (-1, 2)).T
    assert x == pytest.approx(np.array([0.1, 0.9, 0.1]) * width) and y == pytest.approx(
        np.array([0.1, 0.1, 0.9]) * height
    )


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {"segmentation": each}
            for each in ([[1, 2, 30, 40]], [[1, 2]], [1, 2, 3, 4, 5, 6], {}, {"size": [1, 1]}, "abc")
        ),
        *({"iscrowd": None}, {"iscrowd": "1"}, {"area": None}, {"area": "12"}, {"area": float("inf")}),
        *({"segmentation": [[[1, 2], [30, 2], [30, 40]]]}, {"segmentation": [[1, 2], [1, 1, 9, 1, 9, 9]]}),
    ],
    ids=str,
)
def test_what_cocos_tools_cannot_read_is_completed(tmp_path, changed):
    """The box stands for an unusable shape; training names and leaves out such annotations."""
    pytest.importorskip("pycocotools", reason="reads the annotations")
    write_coco(tmp_path, {"val": 3})
    path = tmp_path / "annotations/instances_val2017.json"
    contents = json.loads(path.read_text())
    contents["annotations"][0] |= changed
    path.write_text(json.dumps(contents))
    truth = truth_of(ObjectStore(tmp_path).open("val"))
    assert len(truth["annotations"]) == len(contents["annotations"])
    for kind in ("bbox", "segm"):
        assert average_precision(truth, [], kind).figures["ap"] == 0
    assert truth["annotations"][0]["iscrowd"] == 0
