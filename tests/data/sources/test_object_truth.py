"""Annotations for evaluation, in COCO's format."""

import json

import pytest

from data.sources.object_store import ObjectStore
from data.sources.object_truth import truth_of
from data.sources.run_lengths import RunLengths
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
    first |= {"area": 5, "iscrowd": 1, "segmentation": {"size": [3, 3], "counts": [9]}}
    second |= {"bbox": [1, 1, 0.5, 4], "area": 2}
    del second["segmentation"], second["iscrowd"]
    contents["annotations"] += [{"id": 99, "image_id": 77, "category_id": 44, "bbox": [0, 0, 9, 9]}]
    path.write_text(json.dumps(contents))
    truth = truth_of(ObjectStore(tmp_path).open("val"))["annotations"]
    assert len(truth) == len(contents["annotations"]) - 1  # of an unknown image
    assert truth[0] == {**first, "id": 1} and truth[1]["area"] == 2 and truth[1]["iscrowd"] == 0
    assert truth[1]["segmentation"] == [[1, 1, 1.5, 1, 1.5, 5, 1, 5]]


def test_the_area_of_a_polygon_is_that_of_its_mask(tmp_path):
    WRITERS["yolo"](tmp_path, {"val": 1})
    height, width = made("val", 1)[0].pixels.shape[:2]
    (tmp_path / "labels/val/val_0.txt").write_text("0 0.1 0.1 0.9 0.1 0.1 0.9\n")
    (found,) = truth_of(ObjectStore(tmp_path).open("val"))["annotations"]
    mask = RunLengths.parsed(found["segmentation"]).mask()
    assert mask.shape == (height, width) and found["area"] == mask.sum() < 0.4 * height * width
