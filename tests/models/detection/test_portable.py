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


def test_a_padded_square_has_the_proposals_of_the_image_alone():
    """Up to the values near its border, which see other padding."""
    model, size = detector("mask_rcnn"), (64, 120)
    images = padded(size)
    square = torch.nn.functional.pad(images, (0, 256 - images.shape[3], 0, 256 - images.shape[2]))
    portable = PortableDetector(model)
    with torch.no_grad():
        counts = []
        for each in (images, square):
            boxes, valid = portable._propose(model.rpn_head(model.pyramid(each)), torch.tensor(size))
            counts.append(int(valid.sum()))
            assert boxes[valid].le(torch.tensor([120, 64] * 2)).all()
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


def test_what_is_no_proposal_is_no_detection(monkeypatch):
    portable, size = PortableDetector(detector("mask_rcnn")), torch.tensor([64, 64])
    propose = portable._propose

    def few(predicted, size):
        boxes, valid = propose(predicted, size)
        return boxes, valid & (torch.arange(len(valid)) < 3)

    monkeypatch.setattr(portable, "_propose", few)
    with torch.no_grad():
        _, scores, *_ = portable(padded((64, 64)), size)
    assert 0 < int((scores > 0).sum()) <= 3 * portable.detector.num_classes
