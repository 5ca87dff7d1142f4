"""Detectors whose shapes do not depend on values detect the same."""

import pytest
import torch

from models.detection.box_head import DetectionOptions
from models.detection.detector import DETECTORS
from models.detection.instances import Frame
from models.detection.portable import MAX_CANDIDATES, PortableDetector, _suppress
from tests.models.detection.cases import detector, padded


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_are_the_detectors_own(name):
    model, size = detector(name).double(), (101, 150)
    images = padded(size).double()
    portable = PortableDetector(model)
    with torch.no_grad():
        (expected,) = model.detect(images, [Frame(size, size)])
        boxes, scores, labels, masks = portable(images, torch.tensor(size))
    count, limit = len(expected.scores), model.roi_head.options.detection.count
    assert 0 < count and boxes.shape == (limit, 4) and masks.shape == (limit, 28, 28)
    assert scores[count:].le(model.roi_head.options.detection.score).all()
    assert labels[:count].tolist() == expected.labels.tolist()
    for own, wanted in ((boxes, expected.boxes), (scores, expected.scores), (masks, expected.masks)):
        torch.testing.assert_close(own[:count], wanted)


def test_without_masks_there_are_three_outputs():
    with torch.no_grad():
        outputs = PortableDetector(detector("mask_rcnn", masks=False))(padded((64, 64)), torch.tensor([64, 64]))
    assert [len(each) for each in outputs] == [DetectionOptions().count] * 3


def test_boxes_of_score_0_suppress_none():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 10]])
    scores, groups = torch.tensor([0.0, 0.5, 0.4, 0.3, 0.2]), torch.tensor([0, 0, 0, 0, 1])
    score, order = _suppress(boxes, scores, groups, 0.5)
    assert score[:3].tolist() == pytest.approx([0.5, 0.3, 0.2]) and order[:3].tolist() == [1, 3, 4]
    assert not score[3:].any() and MAX_CANDIDATES > len(boxes)
