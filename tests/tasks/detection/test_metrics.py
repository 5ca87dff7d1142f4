"""The evaluator: AP of an evaluation, by class and by size, and the images with the most errors."""

import json

import pytest
import torch

from data.sources.object_store import ObjectStore
from models.detection.instances import Detections
from tasks.detection.classes import DetectionInfo
from tasks.detection.metrics import DetectionEvaluator
from tests.data.sources.object_sets import made, write_coco
from tests.tools.errors import raises
from utils.batches import Batch
from utils.distributed.world import World
from utils.errors import DataError
from utils.pictures import as_image

pytest.importorskip("pycocotools", reason="computes AP")
COUNT = 6
INFO = DetectionInfo(class_names=("red", "blue"), category_ids=(44, 2))


class Val:
    def __init__(self, source):
        self.source = source


@pytest.fixture
def source(tmp_path):
    return ObjectStore(write_coco(tmp_path, {"val": COUNT})).open("val")


def detections(image, wrong):
    """The objects of an image as they are, or all of the other class; masks fill the boxes."""
    boxes = torch.tensor([each[1:] for each in image.objects], dtype=torch.float32)
    labels = torch.tensor([1 - each[0] if wrong else each[0] for each in image.objects])
    return Detections(boxes, torch.full((len(boxes),), 0.9), labels, torch.ones(len(boxes), 28, 28))


def evaluated(source, indices, wrong=(), **more):
    return evaluated_by(source, indices, wrong, **more).compute(World())


def evaluated_by(source, indices, wrong=(), **more):
    images, evaluator = made("val", COUNT), DetectionEvaluator(Val(source), INFO, **more)
    for index in indices:
        pixels = images[index].pixels
        batch = Batch([torch.zeros(3, 8, 8)], [{"original": pixels.shape[:2]}], (index,))
        evaluator.update([detections(images[index], index in wrong)], batch)
    return evaluator


def test_perfect_detections_have_an_ap_of_100(source):
    evaluation = evaluated(source, range(COUNT))
    assert evaluation.metrics["box_ap"] == evaluation.metrics["mask_ap"] == pytest.approx(100)
    assert "box_ap_large" not in evaluation.metrics  # there is no large object
    assert evaluation.samples == COUNT and "mask AP 100.00" in evaluation.line
    table = evaluation.tables["per_class"]
    assert [row[0] for row in table.rows] == ["red", "blue"] and [row[-2:] for row in table.rows] == [[0, 0], [0, 0]]
    assert [row[1] for row in table.rows] == [
        sum(each[0] == label for image in made("val", COUNT) for each in image.objects) for label in (0, 1)
    ]
    by_size = evaluation.tables["by_size"].rows
    small, total = by_size[0], sum(row[1] for row in table.rows)
    assert (small[0], small[2], small[-2:]) == ("small", "100.00", [0, 0]) and small[1] + by_size[1][1] == total
    assert by_size[2] == ["large", 0, "", "", "", "", 0, 0]


def test_the_images_with_the_most_errors_come_first(source):
    evaluation = evaluated(source, range(COUNT), wrong=[4])
    objects = len(made("val", COUNT)[4].objects)
    worst = evaluation.pictures["worst"]()
    assert worst.tiles[0][1].startswith("val_4.png") and worst.tiles[1][1] == f"{objects} missed, {objects} false"
    assert as_image(worst).size[0] > 300
    for table in ("per_class", "by_size"):
        assert sum(row[-2] for row in evaluation.tables[table].rows) == objects


class TwoRanks(World):
    """The second of two ranks; `other`: what the first one has gathered."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def gather_objects(self, value):
        return [self.other, value]


def test_the_result_is_the_same_for_two_ranks(source, tmp_path):
    """All scores are equal, so the order of the detections would show."""
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    whole = evaluated(source, range(COUNT), wrong=[1, 4], target=str(files[0]))
    first = evaluated_by(source, range(0, COUNT, 2), wrong=[1, 4])
    second = evaluated_by(source, range(1, COUNT, 2), wrong=[1, 4], target=str(files[1]))
    both = second.compute(TwoRanks(first._found))
    assert both.metrics == whole.metrics and both.samples == COUNT and both.tables == whole.tables
    assert 0 < whole.metrics["box_ap"] < 100 and files[0].read_text() == files[1].read_text()


def test_only_evaluated_images_count(source):
    """Unreadable images that are skipped, and a limit of batches, leave some out."""
    assert evaluated(source, [1, 3]).metrics["box_ap"] == pytest.approx(100)
    with raises(DataError, "DATA.DATA_PATH", "no image could be evaluated"):
        evaluated(source, [])


def test_detections_are_written_in_cocos_format(source, tmp_path):
    evaluated(source, range(COUNT), target=str(tmp_path / "found.json"))
    entries = json.loads((tmp_path / "found.json").read_text())
    expected = [(10 + i, (44, 2)[label], [x1, y1, x2 - x1, y2 - y1]) for i, image in enumerate(made("val", COUNT))
                for label, x1, y1, x2, y2 in image.objects]  # fmt: skip
    assert [(each["image_id"], each["category_id"], each["bbox"]) for each in entries] == expected
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
