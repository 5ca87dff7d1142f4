"""Box operations against values computed by hand."""

import math

import pytest
import torch
from torch import tensor

from models.detection.boxes import BoxCoder, area, clip, full_precision, generalized_iou, grouped_nms, pairwise_iou
from models.detection.boxes import nms as torchvision_nms


def test_areas_and_overlaps_have_no_extra_pixel():
    boxes = tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 21, 21]])
    assert area(boxes).tolist() == [100, 100, 1]
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0]]
    torch.testing.assert_close(pairwise_iou(boxes[:2], boxes), tensor(expected))


def test_boxes_without_area_overlap_nothing():
    flat = tensor([[3.0, 3, 3, 9]])
    assert pairwise_iou(flat, flat).item() == 0 and torch.isfinite(generalized_iou(flat, flat)).all()


def test_generalized_iou_subtracts_the_empty_part_of_the_hull():
    first = tensor([[0.0, 0, 10, 10]]).repeat(3, 1)
    second = tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 10, 20, 20]])
    torch.testing.assert_close(generalized_iou(first, second), tensor([1, 1 / 3, -0.5]))


def test_deltas_are_shifts_over_sides_and_log_ratios_over_their_stds():
    references, boxes = tensor([[10.0, 10, 30, 50]]), tensor([[15.0, 20, 55, 60]])
    expected = tensor([[15 / 20 / 0.1, 10 / 40 / 0.1, math.log(2) / 0.2, 0]])
    torch.testing.assert_close(BoxCoder((0.1, 0.1, 0.2, 0.2)).encode(references, boxes), expected)


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.033, 0.033, 0.067, 0.067)])
def test_decoding_inverts_encoding(stds):
    torch.manual_seed(0)
    corner = torch.rand(2, 50, 2) * 100
    references, boxes = torch.cat([corner, corner + 1 + torch.rand(2, 50, 2) * 60], 2)
    coder = BoxCoder(stds)
    torch.testing.assert_close(coder.decode(references, coder.encode(references, boxes)), boxes, rtol=1e-5, atol=1e-3)


def test_sides_change_by_at_most_a_factor_in_both_directions():
    decoded = BoxCoder().decode(tensor([[0.0, 0, 16, 16]]), tensor([[0.0, 0, 99, -99]]))
    torch.testing.assert_close(decoded, tensor([[8 - 500, 8 - 0.128, 8 + 500, 8 + 0.128]]))


def test_deltas_of_several_classes_are_decoded_from_the_same_reference():
    coder, references, deltas = BoxCoder(), torch.rand(3, 4), torch.rand(3, 5, 4)
    assert torch.equal(coder.decode(references[:, None], deltas)[:, 2], coder.decode(references, deltas[:, 2]))


def test_boxes_are_clipped_to_width_and_height():
    assert clip(tensor([[-3.0, 4, 90, 80]]), (50, 70)).tolist() == [[0, 4, 70, 50]]


def test_only_boxes_of_the_same_group_suppress_each_other():
    boxes = tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [30, 0, 40, 10]])
    scores = tensor([0.5, 0.9, 0.8, 0.7])
    assert grouped_nms(boxes, scores, tensor([0, 0, 1, 0]), 0.5).tolist() == [1, 2, 3]
    assert grouped_nms(boxes, scores, tensor([0, 0, 1, 0]), 0.95).tolist() == [1, 2, 3, 0]
    assert grouped_nms(boxes[:0], scores[:0], tensor([], dtype=torch.int64), 0.5).tolist() == []


def test_many_boxes_are_suppressed_group_by_group(monkeypatch):
    torch.manual_seed(0)
    corner = torch.rand(60, 2) * 40
    boxes, scores, groups = torch.cat([corner, corner + 20], 1), torch.rand(60), torch.randint(3, (60,))
    joint = grouped_nms(boxes, scores, groups, 0.5)
    calls = []
    monkeypatch.setattr("models.detection.boxes.MAX_JOINT_NMS", 50)
    monkeypatch.setattr("models.detection.boxes.nms", lambda *args: calls.append(1) or torchvision_nms(*args))
    assert torch.equal(grouped_nms(boxes, scores, groups, 0.5), joint) and len(calls) == 3 and len(joint) < 60


def test_half_precision_is_widened_and_double_kept():
    types = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    assert [full_precision(torch.ones(1, dtype=each)).dtype for each in types] == [torch.float32] * 3 + [torch.float64]
