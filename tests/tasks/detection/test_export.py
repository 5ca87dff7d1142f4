"""A detector is exported, compared and used without its checkpoint."""

import csv
import math
from dataclasses import replace

import pytest
import torch

from models.detection.box_head import DetectionOptions
from models.detection.detector import DETECTORS
from models.detection.instances import Detections
from scripts import predict
from scripts.export import export, main
from scripts.open_model import open_model
from tasks.detection.export import DetectorExport, _apart
from tests.models.detection.cases import detector
from tests.tasks.detection.test_task import folder, trained  # noqa: F401  (fixtures)
from tests.tools.errors import raises
from utils.errors import CheckpointError, ConfigError


@pytest.mark.parametrize("name", DETECTORS)
def test_the_module_equals_the_detector_and_a_wrong_one_does_not(name):
    torch.manual_seed(0)
    own = DetectorExport(detector(name), (3, 96, 128))
    with torch.no_grad():
        assert own.difference(own.module) < 1e-5

        def moved(images, size):
            boxes, *others = own.module(images, size)
            return boxes + 1, *others

        assert own.difference(moved) == pytest.approx(1 / 96, rel=0.01)

        def unsure(images, size):
            boxes, scores, *others = own.module(images, size)
            return boxes, scores * torch.nan, *others

        assert math.isnan(own.difference(unsure))

        def ignorant(images, size):
            return own.module(images, torch.tensor(images.shape[2:]))

        assert own.difference(ignorant) > 0.01  # boxes reach into the padding


def test_a_detection_without_counterpart_is_far_from_all():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(2, 1)
    found = Detections(boxes, torch.tensor([0.5, 0.4]), torch.tensor([0, 1]))
    assert _apart(found, found, 100) == 0
    assert _apart(found, found._replace(labels=torch.tensor([0, 0])), 100) == math.inf
    assert _apart(found.first(0), found.first(0), 100) == 0 and _apart(found, found.first(0), 100) == math.inf


def test_unused_entries_are_not_compared():
    torch.manual_seed(0)
    model = detector("mask_rcnn")
    model.roi_head.options = replace(model.roi_head.options, detection=DetectionOptions(count=700))
    own = DetectorExport(model, (3, 64, 64))
    with torch.no_grad():
        scores = own.module(*own.example(1))[1]
        assert (scores == 0).sum() > 70 and own.difference(own.module) < 1e-5


@pytest.mark.seconds
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_it_predicts_without_its_checkpoint(folder, trained, tmp_path, capsys, ending):  # noqa: F811
    best, target = str(trained / "checkpoints/best.pth"), tmp_path / f"m.{ending}"
    assert main([best, str(target)]) == 0
    out = capsys.readouterr().out
    assert "1 image of 128x128" in out and "boxes, scores, labels, masks differ by at most" in out
    tables = {}
    for model in (best, str(target)):
        table = tmp_path / "out.csv"
        given = [str(folder / "val2017"), "--model", model, "--threshold", "0.011", "--output", str(table)]
        assert predict.main(given) == 0
        tables[model] = list(csv.DictReader(table.open()))
    own, exported = tables.values()
    assert {row["class"] for row in exported} == {row["class"] for row in own} and len(exported) > 5
    assert abs(len(own) - len(exported)) <= len(own) / 4  # other padding, so other values near the border
    capsys.readouterr()
    given = [str(folder / "val2017"), "--model", str(target), "--size", "128"]
    assert predict.main(given) == 2 and "the size of training (64x128)" in capsys.readouterr().err
    assert main([str(target), str(tmp_path / "again.onnx")]) == 2
    assert "is an exported file already" in capsys.readouterr().err
    info, stored = open_model(str(target)).info, open_model(best).info
    assert (info.class_names, info.category_ids, info.masks) == (stored.class_names, stored.category_ids, stored.masks)


@pytest.mark.seconds
def test_several_images_a_call_and_wrong_files_are_refused(trained, tmp_path, monkeypatch):  # noqa: F811
    opened = open_model(str(trained / "checkpoints/best.pth"))
    with raises(ConfigError, "--batch", "single images"):
        export(opened, tmp_path / "m.pt2", 4)
    monkeypatch.setattr("tasks.detection.export.DetectorExport.difference", lambda self, run: 0.1)
    with raises(CheckpointError, tmp_path / "m.pt2", "boxes, scores"):
        export(opened, tmp_path / "m.pt2", 0)
    assert not list(tmp_path.iterdir())
