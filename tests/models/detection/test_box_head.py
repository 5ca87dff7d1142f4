"""Box heads, their losses and the selection of detections."""

import math

import pytest
import torch
from torch import tensor

from models.detection.box_head import (
    BoxHead,
    BoxHeadOptions,
    DetectionOptions,
    class_loss,
    delta_loss,
    detect,
    giou_loss,
    of_class,
)
from models.detection.boxes import BoxCoder

STDS = (0.1, 0.1, 0.2, 0.2)


def head(**options):
    torch.manual_seed(0)
    return BoxHead(3, 4, BoxHeadOptions(width=8, **options), BoxCoder(STDS))


@pytest.mark.parametrize("options", [{}, {"convs": 4, "fcs": 1}])
def test_outputs_are_logits_with_the_background_last_and_boxes_by_class(options):
    model = head(**options)
    logits, deltas = model(torch.randn(5, 4, 7, 7))
    assert logits.shape == (5, 4) and deltas.shape == (5, 3, 4)
    assert model.fc_reg.weight.std() < 0.01 and model.fc_cls.weight.std() < 0.1
    assert len(model.shared_convs) == options.get("convs", 0)


def test_no_regions_give_outputs_with_gradients():
    for options in ({}, {"convs": 2, "fcs": 1}):
        model = head(**options).train()
        logits, deltas = model(torch.zeros(0, 4, 7, 7))
        assert logits.shape == (0, 4) and deltas.shape == (0, 3, 4)
        (logits.sum() + deltas.sum()).backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_the_class_loss_is_a_mean_over_regions():
    assert class_loss(torch.zeros(3, 4), tensor([0, 3, 1])).item() == pytest.approx(math.log(4))
    assert class_loss(torch.zeros(0, 4), tensor([], dtype=torch.int64)).item() == 0


def test_the_box_losses_are_sums_over_positives():
    model, regions, boxes = head(), tensor([[0.0, 0, 10, 10]] * 2), tensor([[1.0, 0, 11, 10], [0, 0, 10, 10]])
    zeros = torch.zeros(2, 4)
    assert delta_loss(model, regions, zeros, boxes).item() == pytest.approx(1.0)  # 0.1 of a side over a std of 0.1
    assert giou_loss(model, regions, zeros, boxes).item() == pytest.approx(10 * (1 - 90 / 110), rel=1e-5)
    assert giou_loss(model, regions, model.coder.encode(regions, boxes), boxes).item() == pytest.approx(0, abs=1e-5)


def test_refined_boxes_are_those_of_a_class_and_inside_the_image():
    model, boxes = head(), tensor([[10.0, 10, 20, 20], [30, 30, 40, 40]])
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 1, 0], deltas[1, 2, 1] = 10, 100
    moved = model.refine(boxes, deltas, tensor([1, 2]), (50, 60))
    assert moved.tolist() == [[20, 10, 30, 20], [30, 50, 40, 50]]
    assert of_class(deltas, tensor([1, 2]))[1].tolist() == [0, 100, 0, 0]


def test_detections_exceed_the_score_and_do_not_overlap_within_a_class():
    boxes = tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [30, 0, 40, 10]])[:, None].expand(3, 2, 4)
    probabilities = tensor([[0.6, 0.05], [0.7, 0.3], [0.2, 0.051]])
    box, score, label = detect(boxes, probabilities, DetectionOptions())
    torch.testing.assert_close(score, tensor([0.7, 0.3, 0.2, 0.051]))
    assert label.tolist() == [0, 1, 0, 1] and box[:, 0].tolist() == [0, 0, 30, 30]
    assert len(detect(boxes, probabilities, DetectionOptions(count=1))[0]) == 1
    assert detect(boxes[:0], probabilities[:0], DetectionOptions())[0].shape == (0, 4)
