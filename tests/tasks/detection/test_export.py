"""What is exported of a detector, and how it is compared; test_task.py exports one."""

import math
from dataclasses import replace

import pytest
import torch

from models.detection.box_head import DetectionOptions
from models.detection.detector import DETECTORS
from models.detection.instances import Detections
from tasks.detection.export import DetectorExport, _apart
from tests.models.detection.cases import detector


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
